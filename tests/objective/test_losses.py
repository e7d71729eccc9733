"""The fused losses against their definitions in float64, and what a naive implementation gets wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracles import logits_of, relative_error
from torch import Tensor
from torch.nn import functional as F

from lowrank_clone.objective import lm_kl
from lowrank_clone.objective.head import Head
from lowrank_clone.objective.lm_kl import lm_kl_loss
from lowrank_clone.objective.tap_mse import mean_square, tap_mse, write_target

N, V, D_S, D_T = 11, 37, 6, 10


class Case:
    """Random hidden states, heads, targets with ignored tokens and positions that do not count."""

    def __init__(self, dtype: torch.dtype = torch.float64, teacher_d: int = D_T, **head: Any) -> None:
        with_bias = head.pop("bias", False)
        self.student, self.teacher = torch.randn(N, D_S, dtype=dtype), torch.randn(N, teacher_d, dtype=dtype)
        heads = []
        for d in (D_S, teacher_d):
            bias = torch.randn(V, dtype=dtype) if with_bias else None
            heads.append(Head(torch.randn(V, d, dtype=dtype), bias, **head))
        self.student_head, self.teacher_head = heads
        self.targets = torch.randint(V, (N,))
        self.targets[[0, 4, N - 1]] = -100
        self.valid = torch.ones(N, dtype=torch.bool)
        self.valid[[2, 4]] = False
        self.leaves = [t for t in (self.student, self.student_head.weight, self.student_head.bias) if t is not None]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def fused(self, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        return lm_kl_loss(
            self.student, self.student_head, self.teacher, self.teacher_head, self.targets, self.valid, **options
        )

    def naive(
        self,
        temperature: float = 1.0,
        lm_weight: float = 1.0,
        kl_weight: float = 1.0,
        lm_count: Tensor | float | None = None,
        kl_count: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ours, theirs = logits_of(self.student, self.student_head), logits_of(self.teacher, self.teacher_head)
        lm = F.cross_entropy(ours, self.targets, ignore_index=-100, reduction="sum")
        rows = F.kl_div(
            F.log_softmax(ours / temperature, -1),
            F.log_softmax(theirs / temperature, -1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        kl = temperature**2 * rows[self.valid].sum()
        lm = lm / ((self.targets != -100).sum() if lm_count is None else lm_count)
        kl = kl / (self.valid.sum() if kl_count is None else kl_count)
        return lm_weight * lm + kl_weight * kl, lm, kl

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))

    def assert_agree(self, tolerance: float = 1e-12, **options: Any) -> None:
        chunk = options.pop("chunk_elements", None)
        truth, ours = self.naive(**options), self.fused(**options, chunk_elements=chunk)
        for value, expected in zip(ours, truth, strict=True):
            assert relative_error(value, expected.detach()) < tolerance
        for gradient, expected in zip(self.gradients(3.0 * ours[0]), self.gradients(3.0 * truth[0]), strict=True):
            assert relative_error(gradient, expected) < tolerance


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.3, 40.0])
def test_equals_the_definition_at_every_temperature(temperature: float) -> None:
    Case().assert_agree(temperature=temperature, tolerance=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_equals_the_definition_for_every_head(
    bias: bool, scale: float, softcap: float | None, temperature: float
) -> None:
    Case(bias=bias, scale=scale, softcap=softcap).assert_agree(temperature=temperature, tolerance=1e-11)


@pytest.mark.parametrize("elements", [1, V, 2 * V, 5 * V, N * V - 1, N * V, N * V + 1, 1000 * V])
@pytest.mark.parametrize("block", [1, 3 * V, 1000 * V])
def test_chunks_and_their_blocks_change_nothing(elements: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lm_kl.BLOCK_ELEMENTS, "cpu", block)
    Case(bias=True, softcap=4.0).assert_agree(temperature=3.0, chunk_elements=elements)


@pytest.mark.parametrize(
    "options",
    [
        {"lm_weight": 0.0},
        {"kl_weight": 0.0},
        {"lm_weight": 0.3, "kl_weight": 1.7, "temperature": 4.0},
        {"lm_count": 50.0, "kl_count": 70.0, "temperature": 4.0},
    ],
    ids=str,
)
def test_weights_and_counts(options: dict[str, float]) -> None:
    Case().assert_agree(**options)
    counts = {key: torch.tensor(int(options[key])) for key in ("lm_count", "kl_count") if key in options}
    Case().assert_agree(**{**options, **counts})


def test_micro_batches_with_shared_counts_add_up() -> None:
    case = Case()
    whole = case.fused(temperature=2.0)
    counts = {"lm_count": (case.targets != -100).sum(), "kl_count": case.valid.sum()}
    parts = [
        lm_kl_loss(
            case.student[part],
            case.student_head,
            case.teacher[part],
            case.teacher_head,
            case.targets[part],
            case.valid[part],
            temperature=2.0,
            **counts,
        )
        for part in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, N))
    ]
    for i in range(3):
        assert relative_error(torch.stack([part[i] for part in parts]).sum(), whole[i].detach()) < 1e-12


@pytest.mark.parametrize(
    "counts", [{}, {"lm_count": torch.tensor(0), "kl_count": torch.tensor(0)}], ids=["own", "given"]
)
@pytest.mark.parametrize("targets", ["all-ignored", "no-rows"])
def test_nothing_to_count_is_zero_and_not_nan(targets: str, counts: dict[str, Tensor]) -> None:
    case = Case()
    case.targets[:] = -100
    case.valid[:] = False
    if targets == "no-rows":
        case.student = case.student.detach()[:0].requires_grad_()
        case.teacher, case.targets, case.valid = case.teacher[:0], case.targets[:0], case.valid[:0]
        case.leaves[0] = case.student
    total, lm, kl = case.fused(temperature=3.0, **counts)
    assert (float(total.detach()), float(lm), float(kl)) == (0.0, 0.0, 0.0)
    assert not any(gradient.any() for gradient in case.gradients(total))


def test_ignored_tokens_have_no_gradient() -> None:
    case = Case()
    gradient = case.gradients(case.fused(temperature=2.0)[0])[0]
    assert [i for i in range(N) if not gradient[i].any()] == [4]


def test_no_teacher_is_cross_entropy_alone() -> None:
    case = Case(bias=True, softcap=4.0)
    total, lm, kl = lm_kl_loss(case.student, case.student_head, None, None, case.targets, case.valid)
    truth = case.naive(kl_weight=0.0)[1]
    assert relative_error(lm, truth.detach()) < 1e-12 and relative_error(total, truth.detach()) < 1e-12
    assert float(kl) == 0.0
    for gradient, expected in zip(case.gradients(total), case.gradients(truth), strict=True):
        assert relative_error(gradient, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 40.0])
def test_kl_of_a_model_to_itself_is_zero_and_so_is_its_gradient(dtype: torch.dtype, temperature: float) -> None:
    case = Case(dtype, teacher_d=D_S)
    case.teacher, case.teacher_head = case.student.detach(), case.student_head
    total, _, kl = case.fused(temperature=temperature, lm_weight=0.0)
    assert abs(float(kl)) < 1e-9 * temperature**2
    # Two products with the same probabilities, of which one may be rounded and the other fused into a sum.
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in case.gradients(total))


def test_kl_is_not_negative_and_grows_with_the_distance() -> None:
    values = []
    for distance in (0.001, 0.01, 0.1, 1.0):
        case = Case(torch.float32, teacher_d=D_S)
        case.teacher, case.teacher_head = case.student.detach() + distance, case.student_head
        values.append(float(case.fused(temperature=1.0)[2]))
    assert 0 < values[0] < values[1] < values[2] < values[3]


def test_kl_at_high_temperature_tends_to_half_the_variance_of_the_logit_difference() -> None:
    case = Case()
    difference = (logits_of(case.student, case.student_head) - logits_of(case.teacher, case.teacher_head)).detach()
    expected = difference.var(-1, correction=0)[case.valid].mean() / 2
    assert relative_error(case.fused(temperature=1e4)[2], expected) < 1e-3


# --- precision --------------------------------------------------------------------------------------------------------


def close_pair(dtype: torch.dtype, distance: float) -> tuple[Case, Case]:
    """A student near its teacher over 2,000 words, in `dtype`, and the same numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    case = Case(dtype, teacher_d=D_S)
    weight = torch.randn(2000, D_S, generator=generator).to(dtype)
    hidden = torch.randn(N, D_S, generator=generator)
    case.teacher = hidden.to(dtype)
    case.student = (hidden + distance * torch.randn(N, D_S, generator=generator)).to(dtype)
    case.student_head, case.teacher_head = Head(weight.clone()), Head(weight)
    case.leaves = [case.student, case.student_head.weight]
    truth = Case()
    truth.student, truth.teacher = case.student.double(), case.teacher.double()
    truth.student_head, truth.teacher_head = Head(case.student_head.weight.double()), Head(weight.double())
    truth.leaves = [truth.student, truth.student_head.weight]
    truth.targets, truth.valid = case.targets, case.valid
    for leaf in [*case.leaves, *truth.leaves]:
        leaf.requires_grad_()
    return case, truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("distance", "accuracy"), [(1.0, 1e-3), (0.2, 1e-2)])
def test_high_temperature_kl_is_close_to_float64(dtype: torch.dtype, distance: float, accuracy: float) -> None:
    case, truth = close_pair(dtype, distance)
    total, lm, kl = case.fused(temperature=40.0)
    expected, expected_lm, expected_kl = truth.naive(temperature=40.0)
    assert relative_error(lm.double(), expected_lm.detach()) < 1e-6
    assert relative_error(kl.double(), expected_kl.detach()) < accuracy
    rounding = 1e-5 if dtype == torch.float32 else 1e-2  # gradients are stored in the leaf's own dtype
    for gradient, right in zip(case.gradients(total), truth.gradients(expected), strict=True):
        assert gradient.dtype == dtype
        assert relative_error(gradient.double(), right) < rounding


def test_bfloat16_log_softmax_is_wrong_where_ours_is_right() -> None:
    case, truth = close_pair(torch.bfloat16, 0.2)
    expected = truth.naive(temperature=40.0)[2].detach()
    t, ours, theirs = 40.0, case.student @ case.student_head.weight.T, case.teacher @ case.teacher_head.weight.T
    p, q = F.log_softmax(theirs / t, -1), F.log_softmax(ours / t, -1)
    naive = t**2 * (p.exp() * (p - q)).sum(-1)[case.valid].mean()
    assert relative_error(naive.double(), expected) > 0.5
    assert relative_error(case.fused(temperature=40.0)[2].double(), expected) < 1e-2


@pytest.mark.parametrize("temperature", [1.0, 3.0, 40.0])
def test_extreme_logits_stay_finite(temperature: float) -> None:
    case = Case(torch.float32)
    case.student_head, case.leaves = Head(case.student_head.weight.detach() * 1e4), [case.student]
    total, lm, kl = case.fused(temperature=temperature)
    assert all(math.isfinite(float(value.detach())) for value in (total, lm, kl))
    assert case.gradients(total)[0].isfinite().all()


@pytest.mark.parametrize("factor", [30.0, 100.0])
@pytest.mark.parametrize("temperature", [3.0, 4.0, 40.0])
def test_a_student_that_is_far_off_has_the_right_loss_and_gradient(factor: float, temperature: float) -> None:
    case = Case()
    case.student_head = Head(case.student_head.weight.detach() * factor * temperature)
    case.leaves = [case.student]
    case.assert_agree(temperature=temperature, tolerance=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_word_of_no_float32_probability_to_the_teacher_counts(temperature: float) -> None:
    teacher = torch.tensor([[0.0, 1.0, -150.0 * temperature]])
    student = torch.tensor([[0.0, 1.0, 3.0]])
    heads, ids = Head(torch.eye(3)), torch.tensor([0])
    kl = lm_kl_loss(student, heads, teacher, heads, ids, ids == 0, temperature=temperature)[2]
    log_s, log_t = ((x.double() / temperature).log_softmax(-1) for x in (student, teacher))
    truth = temperature**2 * (log_t.exp() * (log_t - log_s)).sum()
    torch.testing.assert_close(kl.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    case = Case(dtype)
    expected = case.fused(temperature=4.0)
    gradients = case.gradients(expected[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = case.fused(temperature=4.0)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(case.gradients(ours[0]), gradients, strict=True))


def test_a_second_backward_is_refused_and_the_first_is_right() -> None:
    case = Case()
    total = case.fused()[0]
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        total.backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    case = Case()
    case.student_head = Head(case.student_head.weight.detach())
    case.fused()[0].backward()
    assert case.student.grad is not None and case.student_head.weight.grad is None
    with torch.no_grad():
        assert not case.fused()[0].requires_grad


def test_the_inputs_are_left_as_they_are() -> None:
    case = Case(bias=True, scale=0.5, softcap=3.0)
    inputs = [case.student, case.student_head.weight, case.student_head.bias, case.teacher, case.teacher_head.weight]
    before = [tensor.detach().clone() for tensor in inputs]
    case.fused(temperature=3.0)[0].backward()
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


# --- taps -------------------------------------------------------------------------------------------------------------

WIDTH = 8


class Tap:
    """One tap's activations in float64, and its MSE by definition."""

    def __init__(self, write: bool = False, through: bool = False, bias: bool = True) -> None:
        self.student = torch.randn(N, D_S if write else WIDTH, dtype=torch.float64)
        self.target = torch.randn(N, D_T if write else WIDTH, dtype=torch.float64)
        self.factor = torch.randn(D_T, D_S, dtype=torch.float64) if write else None
        self.through = None
        if through:
            self.student = torch.randn(N, 5, dtype=torch.float64)
            weight = torch.randn(WIDTH, 5, dtype=torch.float64)
            self.through = (weight, torch.randn(WIDTH, dtype=torch.float64) if bias else None)
        self.leaves = [t for t in (self.student, self.factor) if t is not None]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def ours(self, **options: Any) -> tuple[Tensor, Tensor]:
        """The MSE, and the mean square of what it is compared with."""
        target, product = self.target.clone(), None
        if self.factor is not None:
            target, product = write_target(self.target, self.factor), (self.target, self.factor)
        counted = {key: value for key, value in options.items() if key in ("valid", "count")}
        square = mean_square(target, **counted)
        return tap_mse(self.student, target, product=product, through=self.through, **options), square

    def naive(
        self, valid: Tensor | None = None, count: float | None = None, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        kept = torch.ones(N, dtype=torch.bool) if valid is None else valid
        output = self.student if self.through is None else F.linear(self.student, *self.through)
        target = self.target if self.factor is None else self.target @ self.factor
        elements = (count or kept.sum()) * output.shape[-1]
        difference = (output - target)[kept]
        return scale * difference.square().sum() / elements, target[kept].square().sum() / elements

    def assert_agree(self, **options: Any) -> None:
        naive = {key: float(value) if key in ("count", "scale") else value for key, value in options.items()}
        (mse, square), (expected, expected_square) = self.ours(**options), self.naive(**naive)
        assert relative_error(mse, expected.detach()) < 1e-14
        assert relative_error(square, expected_square.detach()) < 1e-14
        ours, truth = (torch.autograd.grad(3.0 * loss, self.leaves) for loss in (mse, expected))
        for gradient, right in zip(ours, truth, strict=True):
            assert relative_error(gradient, right) < 1e-13


TAPS = {
    "read": {},
    "write": {"write": True},
    "teacher-width": {"through": True},
    "teacher-width-no-bias": {"through": True, "bias": False},
}
VALID = torch.arange(N) % 3 != 1


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"valid": VALID},
        {"valid": VALID, "count": torch.tensor(100)},
        {"count": 100.0},
        {"valid": VALID, "scale": torch.tensor(0.37, dtype=torch.float64)},
    ],
    ids=["all", "valid", "valid-count", "count", "scale"],
)
def test_tap_equals_the_definition(tap: str, options: dict[str, Any]) -> None:
    Tap(**TAPS[tap]).assert_agree(**options)


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("overwrite", [True, False])
def test_tap_divided_by_its_own_target(tap: str, overwrite: bool) -> None:
    case = Tap(**TAPS[tap])
    raw, square = case.naive(valid=VALID)
    mse, _ = case.ours(valid=VALID, scale=1 / case.ours(valid=VALID)[1], overwrite=overwrite)
    assert relative_error(mse, (raw / square).detach()) < 1e-14
    ours = torch.autograd.grad(mse, case.leaves)
    truth = torch.autograd.grad(raw / square.detach(), case.leaves)  # the divisor carries no gradient
    assert all(relative_error(a, b) < 1e-13 for a, b in zip(ours, truth, strict=True))


@pytest.mark.parametrize("tap", TAPS)
def test_uncounted_tokens_do_not_matter_even_if_they_are_not_finite(tap: str) -> None:
    case = Tap(**TAPS[tap])
    expected = case.ours(valid=VALID)[0].detach()
    with torch.no_grad():
        case.target[~VALID] = math.nan
        case.student[~VALID] = 1e30
    mse, square = case.ours(valid=VALID)
    assert torch.equal(mse.detach(), expected) and square.isfinite()
    assert not torch.autograd.grad(mse, case.student)[0][~VALID].any()


def test_target_is_overwritten_only_where_allowed() -> None:
    for overwrite in (True, False):
        case = Tap()
        target = case.target.clone()
        tap_mse(case.student, target, overwrite=overwrite)
        assert torch.equal(target, case.target) != overwrite


def test_a_tap_of_a_model_with_itself_is_zero_and_leaves_the_activation() -> None:
    x = torch.randn(N, WIDTH)
    before = x.clone()
    assert float(tap_mse(x, x)) == 0.0 and torch.equal(x, before)
    assert relative_error(mean_square(x), x.square().mean()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tap_sums_are_float32_and_untouched_by_autocast(dtype: torch.dtype) -> None:
    student, target = torch.randn(N, WIDTH).to(dtype).requires_grad_(), torch.randn(N, WIDTH).to(dtype)
    factor = torch.randn(WIDTH, WIDTH).to(dtype)

    def take() -> tuple[Tensor, Tensor]:
        aim = write_target(target, factor)
        return mean_square(aim), tap_mse(student, aim, product=(target, factor))

    square, mse = take()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(take(), (square, mse), strict=True))
    assert mse.dtype == square.dtype == torch.float32
    truth = (student.double() - target.double() @ factor.double()).square().mean().detach()
    assert relative_error(mse.double(), truth) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_large_activations_do_not_overflow_in_bfloat16() -> None:
    student, target = torch.full((N, WIDTH), 3e4, dtype=torch.bfloat16), torch.zeros(N, WIDTH, dtype=torch.bfloat16)
    assert relative_error(tap_mse(student, target).double(), torch.tensor(9e8).double()) < 1e-2


def test_a_second_backward_of_a_tap_is_refused() -> None:
    mse = Tap(write=True).ours()[0]
    mse.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        mse.backward()


@pytest.mark.parametrize("gap", [1e-2, 0.3, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 40.0])
def test_kl_of_nearly_equal_and_of_far_logits_is_accurate_in_float32(gap: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.eye(2048)
    teacher = 3 * torch.randn(8, 2048, generator=generator)
    student = teacher + gap * torch.randn(8, 2048, generator=generator)
    targets, valid = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.bool)
    heads = Head(weight), Head(weight)
    kl = lm_kl_loss(student, heads[0], teacher, heads[1], targets, valid, temperature=temperature)[2]
    log_s, log_t = ((x.double() / temperature).log_softmax(-1) for x in (student, teacher))
    truth = temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    torch.testing.assert_close(kl.double(), truth, rtol=2e-4, atol=0)
