"""Taps and heads: what is read out of a stock model is what it computes, and nothing stays behind in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import hooks, logits_of, relative_error
from tiny import FAMILIES, batch, tiny_config, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lowrank_clone.errors import InputError
from lowrank_clone.objective.comparison import Comparison, TargetSquares
from lowrank_clone.objective.head import head_input, read_head
from lowrank_clone.objective.probe import TapRuns
from lowrank_clone.objective.taps import observe, tap_output
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.roles import TapSpec

GATE = TapSpec("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_proj", "read", "ffn", 0, 40)
DOWN = TapSpec("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj", "write", "ffn", 0, 40)


# --- the head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "phi", "glm4", "smollm3"])
def test_head_on_hidden_states_gives_the_model_s_logits(family: str) -> None:
    model = tiny_model(family, hidden_size=32) if family == "phi" else tiny_model(family)
    head = read_head(model)
    with torch.no_grad():
        expected = model(batch()).logits
        with head_input(model) as caught:
            model(batch())
        ours = logits_of(caught.hidden.flatten(0, 1), head)
    assert relative_error(ours, expected.flatten(0, 1)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "scale", "softcap"),
    [("llama", 1.0, None), ("granite", 1 / 3, None), ("cohere", 0.25, None), ("gemma2", 1.0, 3.0)],
)
def test_scale_and_cap_of_the_logits(family: str, scale: float, softcap: float | None, dtype: torch.dtype) -> None:
    head = read_head(tiny_model(family, dtype=dtype))
    exact = 1e-14 if dtype == torch.float64 else 1e-7
    assert head.scale == pytest.approx(scale, rel=exact)
    assert head.softcap == (softcap if softcap is None else pytest.approx(softcap, rel=exact))


@pytest.mark.parametrize("cap", [1.0, 30.0, 200.0])
def test_softcaps_of_many_sizes(cap: float) -> None:
    assert read_head(tiny_model("gemma2", final_logit_softcapping=cap)).softcap == pytest.approx(cap, rel=1e-6)


@pytest.mark.parametrize("divisor", [0.05, 8.0, 16.0, 500.0])
def test_scales_of_many_sizes(divisor: float) -> None:
    assert read_head(tiny_model("granite", logits_scaling=divisor)).scale == pytest.approx(1 / divisor, rel=1e-6)


def test_a_head_bias_is_found() -> None:
    model = tiny_model("phi", hidden_size=32)
    assert read_head(model).bias is model.lm_head.bias is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits + 1.0,
        lambda logits: logits.square(),
        lambda logits: logits.clamp(-5, 5),
        lambda logits: torch.sin(logits),
    ],
    ids=["shift", "square", "clamp", "sine"],
)
def test_other_transforms_of_the_logits_are_refused(change: Any) -> None:
    model = tiny_model("llama")

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    model.register_forward_hook(after)
    with pytest.raises(InputError, match="`llama`: its logits are no scaled or capped output"):
        read_head(model)
    assert hooks(model) == 1


def test_reading_the_head_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gemma2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read_head(model)
    assert model.training and all(module.training for module in model.modules())
    assert hooks(model) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_head_input_spares_the_logits_and_is_gone_afterwards() -> None:
    model = tiny_model("llama")
    with head_input(model) as caught:
        output = model(batch())
    assert caught.hidden.shape == (2, 12, 24) and output.logits.shape == (2, 1, 96)
    assert model(batch()).logits.shape == (2, 12, 96)
    with pytest.raises(ZeroDivisionError), head_input(model):
        raise ZeroDivisionError
    assert hooks(model) == 0


# --- observing --------------------------------------------------------------------------------------------------------


def test_observed_activations_are_those_of_the_linears() -> None:
    model, seen = tiny_model("llama"), {}
    with torch.no_grad(), observe(model, [GATE, DOWN], 24, lambda tap, x, y: seen.update({tap.name: (x, y)})):
        model(batch())
    for tap, width in ((GATE, 40), (DOWN, 24)):
        given, output = seen[tap.name]
        assert output.shape == (24, width)
        weight = dict(model.named_parameters())[tap.name]
        assert torch.equal(output, (given @ weight.T).flatten(0, 1))


@pytest.mark.parametrize("family", ["olmo", "llama4_text"])
def test_what_was_observed_stays_what_the_module_returned(family: str) -> None:
    fields = {"clip_qkv": 0.05, "hidden_size": 32, "num_local_experts": 4, "num_experts_per_tok": 1}
    model = tiny_model(family, **fields)
    width, seen, then = model.config.hidden_size, {}, {}
    taps = make_plan(model.config, 16).taps

    def see(tap: TapSpec, given: Tensor, output: Tensor) -> None:
        seen[tap.name], then[tap.name] = output, output.clone()

    with torch.no_grad():
        with observe(model, taps, width, see):
            logits = model(batch()).logits
        assert torch.equal(model(batch()).logits, logits)
    assert seen and all(torch.equal(seen[name], then[name]) for name in seen)


def test_observers_are_gone_afterwards_even_after_an_error() -> None:
    model, count = tiny_model("llama"), []
    with observe(model, [GATE, DOWN], 24, lambda *_: count.append(1)):
        assert hooks(model) == 2
        model(batch())
    model(batch())
    assert len(count) == 2 and hooks(model) == 0

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), observe(model, [GATE, DOWN], 24, fail):
        model(batch())
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(2, 3, 40),
        (torch.zeros(2, 3, 40), None),
        (torch.zeros(6, 8), torch.zeros(6, 40), torch.zeros(6, 40) + 1),
        [torch.zeros(6, 40, dtype=torch.long), torch.zeros(6, 40)],
    ],
    ids=["tensor", "pair", "by-width", "floating"],
)
def test_the_tapped_tensor_is_the_first_floating_one_of_its_width(output: Any) -> None:
    shown = tap_output(GATE, 24, output)
    assert shown.shape == (6, 40) and shown.is_floating_point() and not shown.any()


def test_no_tensor_of_the_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"returned \[\[6, 39\]\], expected a tensor of 40 channels"):
        tap_output(GATE, 24, torch.zeros(6, 39))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_of_every_family_is_seen_once_a_forward(family: str) -> None:
    model, seen = tiny_model(family), []
    plan = make_plan(model.config, 16)

    def see(tap: TapSpec, given: Tensor, output: Tensor) -> None:
        assert output.shape == (24, 24 if tap.kind == "write" else tap.inner)
        seen.append(tap.name)

    with torch.no_grad(), observe(model, plan.taps, 24, see):
        model(batch())
    assert sorted(seen) == sorted(tap.name for tap in plan.taps)


# --- comparing --------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """A module that runs one linear as often as it is told."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6, bias=False)
        self.runs = runs

    def forward(self, x: Tensor) -> None:
        for _ in range(self.runs):
            self.linear(x)


def compared(teacher_runs: int, student_runs: int) -> tuple[Comparison, Two, Two]:
    tap = TapSpec("linear.weight", "linear", "read", "ffn", 0, 6)
    runs = {tap.name: TapRuns(calls=max(teacher_runs, 1))}
    comparison = Comparison([tap], runs, 3, {}, {}, None, None, None)
    teacher, student = Two(teacher_runs), Two(student_runs)
    with comparison.watch_teacher(lambda taps, see: observe(teacher, taps, 0, see)), torch.no_grad():
        teacher(torch.ones(3, 4))
    with comparison.watch_student(lambda taps, see: observe(student, taps, 0, see)):
        student(torch.ones(3, 4))
    return comparison, teacher, student


@pytest.mark.parametrize("runs", [1, 3])
def test_each_run_of_a_module_is_compared_with_the_teacher_s_same_run(runs: int) -> None:
    comparison, teacher, student = compared(runs, runs)
    x = torch.ones(3, 4)
    once = (student.linear(x) - teacher.linear(x)).square().mean()
    assert relative_error(comparison.losses["linear.weight"], runs * once.detach()) < 1e-6


@pytest.mark.parametrize(("teacher_runs", "student_runs"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_a_module_that_runs_more_often_in_one_model_is_refused(teacher_runs: int, student_runs: int) -> None:
    with pytest.raises(InputError, match=r"tap `linear\.weight`: module `linear` did not run"):
        compared(teacher_runs, student_runs)


def test_target_squares_are_a_running_mean_over_steps_of_all_their_tokens() -> None:
    squares, count = TargetSquares(["a", "b"]), torch.tensor(10)

    def add(a: float, b: float, tokens: int) -> None:
        squares.add({"a": torch.tensor(a), "b": torch.tensor(b)}, count, torch.tensor(tokens))

    assert squares.scales(0) == "own"
    add(1.0, 2.0, 4)
    add(3.0, 6.0, 6)
    assert squares.scales(0) == "own"  # not before the step is over
    scales = squares.scales(1)
    assert {name: round(1 / float(value), 5) for name, value in scales.items()} == {"a": 4.0, "b": 8.0}
    add(14.0, 18.0, 10)
    assert torch.allclose(squares.scales(1)["a"], torch.tensor(1 / 4.0))
    assert torch.allclose(squares.scales(2)["a"], torch.tensor(1 / (0.9 * 4.0 + 0.1 * 14.0)))
    assert torch.allclose(squares.scales(2)["b"], torch.tensor(1 / (0.9 * 8.0 + 0.1 * 18.0)))


def test_a_step_without_counted_tokens_leaves_the_running_mean() -> None:
    squares = TargetSquares(["a"])
    for pushes, (value, tokens) in enumerate([(2.0, 5), (0.0, 0)]):
        squares.scales(pushes)
        squares.add({"a": torch.tensor(value)}, torch.tensor(tokens), torch.tensor(tokens))
    assert float(squares.scales(2)["a"]) == 0.5


def test_a_step_that_is_given_up_leaves_no_trace() -> None:
    squares = TargetSquares(["a"])
    for pushes, value in enumerate([2.0, float("nan")]):
        squares.scales(pushes)
        squares.add({"a": torch.tensor(value)}, torch.tensor(5), torch.tensor(5))
    squares.drop()
    assert squares.state_dict().keys() == {"mean"} and float(squares.scales(2)["a"]) == 0.5


def test_target_squares_continue_from_their_state() -> None:
    first, second = TargetSquares(["a"]), TargetSquares(["a"])
    first.scales(0)
    first.add({"a": torch.tensor(2.0)}, torch.tensor(5), torch.tensor(5))
    first.scales(1)
    first.add({"a": torch.tensor(7.0)}, torch.tensor(5), torch.tensor(5))
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()}, torch.device("cpu"))
    assert torch.equal(second.scales(99)["a"], first.scales(2)["a"])


def test_a_target_of_zeros_gives_a_finite_scale() -> None:
    squares = TargetSquares(["a"])
    squares.scales(0)
    squares.add({"a": torch.tensor(0.0)}, torch.tensor(5), torch.tensor(5))
    assert squares.scales(1)["a"].isfinite()


def test_taps_of_a_model_without_linears_in_its_experts_are_router_and_block() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("gpt_oss"))
    plan = make_plan(model.config, 16)
    shown = {tap.name.removeprefix("model.layers.0."): tap.kind for tap in plan.taps if tap.layer == 0}
    assert shown == {
        **{f"self_attn.{name}_proj.weight": "read" for name in "qkv"},
        "self_attn.o_proj.weight": "write",
        "mlp.router.weight": "read",
        "mlp.experts.down_proj": "write",
    }
