"""What a user may do with a bound optimiser and with gradients: right to the number, or one line that says no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import naive_objective, relative_error
from tiny import batch, tiny_model
from torch import Tensor
from torch.optim import LBFGS, SGD, AdamW, Muon, Optimizer

from lowrank_clone import CloneModel, InputError, MuonAdamW, bind
from lowrank_clone.training.optim import is_bound, refresh


def clone(family: str = "starcoder2", **options: Any) -> CloneModel:
    return CloneModel(tiny_model(family, dtype=torch.float64), 16, **{"factor_std": 0.2, **options}).train()


def values(model: CloneModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.factors.items()}


def stepped(make: Callable[[Any], Optimizer], steps: int = 3, **options: Any) -> dict[str, Tensor]:
    """Factors after plain steps of a bound optimiser."""
    model = clone(**options)
    optimizer = bind(make(model.factors.parameters()), model.factors)
    for seed in range(steps):
        model(batch(seed=seed)).loss.backward()
        optimizer.step()
    return values(model)


def assert_same(model: CloneModel, expected: dict[str, Tensor], bound: float = 1e-9) -> None:
    for name, p in model.factors.items():
        assert relative_error(p.detach(), expected[name]) < bound, name


# --- reading gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["starcoder2", "gpt_oss"])
def test_gradients_are_those_through_the_products_and_reading_them_changes_no_step(family: str) -> None:
    teacher = tiny_model(family, dtype=torch.float64)
    if family == "gpt_oss":
        teacher.set_experts_implementation("eager")  # the grouped kernels know no float64
    model = CloneModel(teacher, 16, factor_std=0.2).train()
    truth = naive_objective(model, batch()).gradients
    optimizer = bind(SGD(model.factors.parameters(), lr=1e-2), model.factors)
    before = values(model)
    assert model.factors.gradients() == {}
    model(batch()).loss.backward()
    for _ in range(2):
        found = model.factors.gradients()
        assert set(found) == set(truth)
        for name, grad in found.items():
            assert relative_error(grad, truth[name]) < 1e-9, name
            grad.zero_()
        assert all(p.grad is None for p in model.factors.parameters())
    optimizer.step()
    assert_same(model, {name: before[name] - 1e-2 * truth[name] for name in before})


def test_gradients_add_up_over_micro_batches_and_pulls() -> None:
    model = clone()
    total: dict[str, Tensor] = {}
    for seed in range(3):
        truth = naive_objective(model, batch(seed=seed)).gradients
        total = {name: total.get(name, 0) + truth[name] for name in truth}
        model(batch(seed=seed)).loss.backward()
        if seed == 1:
            model.factors.pull()  # what is pulled early counts once
        for name, grad in model.factors.gradients().items():
            assert relative_error(grad, total[name]) < 1e-9, name


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=1e-2), lambda p: AdamW(p, lr=1e-3), lambda p: MuonAdamW(p, lr=1e-3)]
)
def test_a_closure_is_a_step(make: Callable[[Any], Optimizer]) -> None:
    model = clone()
    optimizer = bind(make(model.factors.parameters()), model.factors)
    for seed in range(3):

        def closure(seed: int = seed) -> float:
            optimizer.zero_grad()
            loss = model(batch(seed=seed)).loss
            loss.backward()
            return loss

        assert torch.isfinite(optimizer.step(closure))
    assert_same(model, stepped(make))


def test_an_optimiser_that_evaluates_often_sees_the_student_of_each_evaluation() -> None:
    model = clone()
    optimizer = bind(LBFGS(model.factors.parameters(), lr=0.1, max_iter=5), model.factors)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    optimizer.step(closure)
    assert len(losses) == 5 and losses[-1] < losses[0] and len(set(losses)) == 5


def test_zero_grad_drops_what_the_leaves_hold() -> None:
    for to_none in (True, False):
        model = clone()
        optimizer = bind(SGD(model.factors.parameters(), lr=1e-2), model.factors)
        model(batch(seed=7)).loss.backward()
        optimizer.zero_grad(set_to_none=to_none)
        for seed in range(3):
            model(batch(seed=seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        assert_same(model, stepped(lambda p: SGD(p, lr=1e-2)))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_implementations_of_adamw_agree(options: dict[str, bool]) -> None:
    expected = stepped(lambda p: AdamW(p, lr=1e-3, weight_decay=0.1))
    found = stepped(lambda p: AdamW(p, lr=1e-3, weight_decay=0.1, **options))
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-9, name


def test_a_factor_without_a_gradient_is_left_alone() -> None:
    model = clone("llama", kl_weight=0.0, clone_weight=0.0)
    optimizer = bind(AdamW(model.factors.parameters(), lr=1e-2, weight_decay=0.5), model.factors)
    name = "lm_head.weight"
    model.student.lm_head.weight.requires_grad_(False)
    before = model.factors[name].detach().clone()
    model(batch()).loss.backward()
    optimizer.step()
    assert torch.equal(model.factors[name], before) and not optimizer.state[model.factors[name]]


def test_a_frozen_factor_gets_no_gradient_and_stays_frozen_through_a_switch() -> None:
    model = clone()
    out, bias = "model.layers.0.mlp.c_proj.weight", "model.layers.0.mlp.c_proj.bias"
    model.factors[out].requires_grad_(False)
    trained = [p for p in model.factors.parameters() if p.requires_grad]
    optimizer = bind(SGD(trained, lr=1e-2), model.factors)
    model(batch()).loss.backward()
    assert out not in model.factors.gradients()
    optimizer.step()
    model.reparameterize({"ffn": "dense"})
    refresh(optimizer, model.factors)
    assert not model.factors[out].requires_grad and not model.factors[bias].requires_grad
    before = values(model)
    model(batch()).loss.backward()
    optimizer.step()
    still = {name for name in before if torch.equal(before[name], model.factors[name])}
    assert still == {out, bias, out + ".Z"}


def test_a_grad_scaler_sees_pulled_gradients() -> None:
    model = clone("llama")
    optimizer = bind(SGD(model.factors.parameters(), lr=1e-2), model.factors, max_grad_norm=1e9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for seed in range(3):
        scaler.scale(model(batch(seed=seed)).loss).backward()
        model.factors.pull()
        scaler.step(optimizer)
        scaler.update()
    assert_same(model, stepped(lambda p: SGD(p, lr=1e-2), family="llama"), 1e-7)
    before = values(model)
    scaler.scale(model(batch()).loss * torch.inf).backward()
    model.factors.pull()
    scaler.step(optimizer)  # is skipped
    scaler.update()
    optimizer.zero_grad()
    assert all(torch.equal(before[name], p) for name, p in model.factors.items())
    assert model.factors.gradients() == {}


def test_a_fused_optimiser_s_scaler_that_has_seen_no_gradient_is_refused() -> None:
    model = clone("llama")
    optimizer = bind(AdamW(model.factors.parameters(), lr=1e-2, fused=True), model.factors)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(model(batch()).loss).backward()
    with pytest.raises((InputError, AssertionError), match=r"GradScaler|No inf checks"):
        scaler.step(optimizer)


def test_an_optimiser_that_was_bound_before_leaves_no_gradient_behind() -> None:
    model = clone()
    earlier = bind(AdamW(model.factors.parameters(), lr=1e-3), model.factors)  # of an earlier trainer, say
    optimizer = bind(SGD(model.factors.parameters(), lr=1e-2), model.factors)
    for seed in range(3):
        model(batch(seed=seed)).loss.backward()
        optimizer.step()
        assert all(p.grad is None for p in model.factors.parameters())
    assert not earlier.state
    assert_same(model, stepped(lambda p: SGD(p, lr=1e-2)))


def test_a_switch_between_a_pull_and_its_step_is_refused() -> None:
    model = clone()
    model(batch()).loss.backward()
    model.factors.pull()
    with pytest.raises(InputError, match="hold gradients"):
        model.reparameterize({"ffn": "dense"})
    model.factors.zero_grad()
    model.reparameterize({"ffn": "dense"})


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_binding_twice_is_refused() -> None:
    model = clone("llama")
    optimizer = bind(SGD(model.factors.parameters(), lr=1e-2), model.factors)
    assert is_bound(optimizer, model.factors) and not is_bound(optimizer, clone("llama").factors)
    with pytest.raises(InputError, match="bound already"):
        bind(optimizer, model.factors)


@pytest.mark.parametrize(
    "parameters",
    [
        lambda model: [p for p in model.parameters() if p.requires_grad],
        lambda model: model.student.parameters(),
        lambda model: [*model.factors.parameters(), torch.nn.Parameter(torch.zeros(2))],
        lambda model: clone("llama").factors.parameters(),
    ],
    ids=["leaves", "student", "more", "another clone's"],
)
def test_parameters_that_are_no_factors_are_refused(parameters: Any) -> None:
    model = clone("llama")
    with pytest.raises(InputError, match="are no factors") as caught:
        bind(SGD(parameters(model), lr=1e-2), model.factors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [SGD, AdamW, MuonAdamW])
def test_a_step_without_a_gradient_is_refused(kind: Any) -> None:
    model = clone("llama")
    optimizer = bind(kind(model.factors.parameters(), lr=1e-2), model.factors)
    with pytest.raises(InputError, match="no factor has a gradient"):
        optimizer.step()
    model(batch()).loss.backward()
    optimizer.step()


# --- Muon -------------------------------------------------------------------------------------------------------------


def parameters_and_gradients(steps: int) -> tuple[list[torch.nn.Parameter], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((24, 16), (16,), (8, 40), (2, 8, 16), (1,))
    ps = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return ps, [[torch.randn(p.shape, generator=generator) for p in ps] for _ in range(steps)]


def run_muon(optimizers: Callable[[list[Any]], list[Optimizer]], steps: int = 4) -> list[Tensor]:
    ps, gradients = parameters_and_gradients(steps)
    made = optimizers(ps)
    for optimizer in made:  # a schedule that halves the rate
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    for step, grads in enumerate(gradients):
        for p, grad in zip(ps, grads, strict=True):
            p.grad = grad.clone() if step != 2 or p.ndim != 1 else None  # a vector that is not used once
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * 0.5**step
            optimizer.step()
    return [p.detach() for p in ps]


def separately(ps: list[Any]) -> list[Optimizer]:
    """torch's own two optimisers, each with its part, in two groups of their own rates and decays."""
    muon = {"momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    adamw = {"betas": (0.8, 0.95), "eps": 1e-6}
    return [
        Muon([ps[0]], lr=1e-2, weight_decay=0.1, **muon),
        AdamW([ps[1]], lr=1e-2, weight_decay=0.1, **adamw),
        Muon([ps[2]], lr=3e-3, weight_decay=0.0, **muon),
        AdamW([ps[3], ps[4]], lr=3e-3, weight_decay=0.0, **adamw),
    ]


def together(ps: list[Any]) -> MuonAdamW:
    groups = [
        {"params": ps[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [], "lr": 1.0},
        {"params": ps[2:], "lr": 3e-3, "weight_decay": 0.0},
    ]
    return MuonAdamW(groups, momentum=0.9, betas=(0.8, 0.95), eps=1e-6)


def test_muon_adamw_is_torch_s_muon_and_torch_s_adamw() -> None:
    starts = parameters_and_gradients(4)[0]
    for start, ours, theirs in zip(starts, run_muon(lambda ps: [together(ps)]), run_muon(separately), strict=True):
        if ours.ndim == 2:  # torch's steps are rounded to bfloat16
            assert relative_error(ours - start.detach(), theirs - start.detach()) < 2e-2
        else:
            assert torch.equal(ours, theirs)


def test_muon_adamw_goes_on_from_its_state_dict() -> None:
    whole = run_muon(lambda ps: [together(ps)])
    ps, gradients = parameters_and_gradients(4)
    optimizer = together(ps)
    for step, grads in enumerate(gradients):
        for p, grad in zip(ps, grads, strict=True):
            p.grad = grad.clone() if step != 2 or p.ndim != 1 else None
        for group, rate in zip(optimizer.param_groups, (1e-2, 1.0, 3e-3), strict=True):
            group["lr"] = rate * 0.5**step
        optimizer.step()
        state = optimizer.state_dict()
        optimizer = together(ps)
        optimizer.load_state_dict(state)
    assert all(torch.equal(p, expected) for p, expected in zip(ps, whole, strict=True))
