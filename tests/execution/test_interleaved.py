"""Interleaved execution: the same numbers to the last bit, one layer of targets alive, and no way to hang."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from torch import Tensor, nn

from lowrank_clone.errors import InputError
from lowrank_clone.execution.interleaved import Strand
from lowrank_clone.model import CloneModel

FAMILIES = ("llama", "qwen3", "gemma2", "cohere", "olmo2", "mixtral", "gpt_oss")


def clone(family: str = "llama", **options: Any) -> CloneModel:
    return CloneModel(tiny_model(family), 16, **options).train()


def losses_and_gradients(
    model: CloneModel, autocast: bool = False, **inputs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every term and every factor's gradient of one batch."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(batch(), **inputs)
    output.loss.backward()
    model.factors.pull()
    terms = {"loss": output.loss, "lm": output.lm, "kl": output.kl, **output.taps}
    return terms, {name: factor.grad for name, factor in model.factors.named_parameters()}


def assert_same(left: CloneModel, right: CloneModel, **inputs: Any) -> None:
    for ours, theirs in zip(losses_and_gradients(left, **inputs), losses_and_gradients(right, **inputs), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_same_bits(family: str) -> None:
    assert_same(clone(family), clone(family, execution="interleaved"))


@pytest.mark.parametrize(
    "options",
    [{"clone_normalization": "target"}, {"attn_out_tap": "teacher"}, {"kl_weight": 0.0}, {"dtype": torch.bfloat16}],
    ids=str,
)
def test_same_bits_with_options(options: dict[str, Any]) -> None:
    if options.get("kl_weight") == 0.0:
        left, right = clone(**options), clone(**options, execution="interleaved")
        outputs = [model(batch()) for model in (left, right)]
        assert torch.equal(outputs[0].loss, outputs[1].loss) and outputs[1].kl is None
    else:
        assert_same(clone(**options), clone(**options, execution="interleaved"))


def test_same_bits_with_checkpointing_and_padding() -> None:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 8:] = 0
    models = [clone(), clone(execution="interleaved")]
    for model in models:
        model.activation_checkpointing_enable()
    assert_same(*models, attention_mask=mask)


def test_same_bits_under_autocast() -> None:
    assert_same(clone(), clone(execution="interleaved"), autocast=True)


def test_targets_of_one_layer_only_are_alive() -> None:
    teacher = tiny_model("llama", num_hidden_layers=4)
    model = CloneModel(teacher, 16, execution="interleaved").train()
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def born(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.append(weakref.ref(output))

    for block in teacher.model.layers:
        for name in ("gate_proj", "up_proj"):
            block.mlp.get_submodule(name).register_forward_hook(born)
        block.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in outputs)))
    model(batch())
    assert alive == [0, 0, 0, 0]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def assert_nothing_left(model: CloneModel) -> None:
    assert hooks(model) == 0
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("lowrank_clone")] == []


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_on_either_side_is_raised_and_nothing_is_left(side: str, layer: int) -> None:
    model = clone(execution="interleaved")
    expected = model(batch()).loss
    block = model.get_submodule(side).model.layers[layer].mlp

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("as planned")

    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="as planned"):
        model(batch())
    handle.remove()
    assert_nothing_left(model)
    assert torch.equal(model(batch()).loss, expected)
    assert_nothing_left(model)


def test_an_interrupt_of_the_student_ends_the_teacher() -> None:
    model = clone(execution="interleaved")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.student.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(batch())
    handle.remove()
    assert_nothing_left(model)


def test_grad_mode_of_the_teacher_does_not_leak() -> None:
    model = clone(execution="interleaved")
    assert model(batch()).loss.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        assert not model(batch()).loss.requires_grad


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(InputError, match="execution: got 'parallel', expected one of sequential, interleaved"):
        clone(execution="parallel")


def test_a_strand_takes_turns_with_its_creator() -> None:
    said: list[str] = []

    def call() -> None:
        for word in ("one", "two"):
            said.append(word)
            strand.pause()
        said.append("three")

    strand = Strand(call, torch.device("cpu"))
    for reply in ("a", "b", "c", "d"):
        strand.advance()
        said.append(reply)
    strand.close()
    assert said == ["one", "a", "two", "b", "three", "c", "d"]


def test_a_strand_that_never_began_can_be_closed() -> None:
    strand = Strand(lambda: None, torch.device("cpu"))
    strand.close()
    assert not strand._thread.is_alive()
