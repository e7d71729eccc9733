"""What must not change the result: checkpointing, padding, attention kernels, the order of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import hooks, pulled_gradients, relative_error
from tiny import FAMILIES, VOCAB, batch, tiny_model
from torch import Tensor

from lowrank_clone.model import CloneModel, CloneOutput


def clone(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> CloneModel:
    teacher = tiny_model(family, dtype=dtype)
    if dtype == torch.float64:
        teacher.set_experts_implementation("eager")
    return CloneModel(teacher, 16, factor_std=0.2, kl_weight=0.7, **options).train()


def terms(output: CloneOutput) -> dict[str, Tensor]:
    return {"loss": output.loss.detach(), "lm": output.lm, "kl": output.kl, "clone": output.clone, **output.taps}


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    """The KL, a difference of nearly equal numbers, is ten times less exact."""
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        assert relative_error(ours[name], value) < tolerance * (10 if name == "kl" else 1), name


# --- gradient checkpointing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"clone_normalization": "target", "attn_out_tap": "teacher"}], ids=["", "opts"]
)
@pytest.mark.parametrize("recompute", ["all", "elementwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_loss_and_gradients(family: str, recompute: str, options: dict[str, Any]) -> None:
    plain, checkpointed = clone(family, **options), clone(family, **options)
    checkpointed.activation_checkpointing_enable({"recompute": recompute})
    runs: list[int] = []
    layers = next(m for m in checkpointed.student.modules() if isinstance(m, torch.nn.ModuleList))
    layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    outputs = [model(batch()) for model in (plain, checkpointed)]
    assert len(runs) == 1
    for output in outputs:
        output.loss.backward()
    assert len(runs) == 2  # the backward pass did run the layer again
    assert_close(terms(outputs[1]), terms(outputs[0]), 1e-7)
    assert_close(pulled_gradients(checkpointed), pulled_gradients(plain), 1e-6)


def test_checkpointing_counts_targets_once() -> None:
    plain, checkpointed = (clone("llama", clone_normalization="target") for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    for model in (plain, checkpointed):
        model(batch()).loss.backward()
        model.factors.push()
        model.target_squares.scales(model.factors.pushes)
    assert torch.equal(plain.target_squares.mean, checkpointed.target_squares.mean)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_hook_stays_after_a_forward_and_backward(checkpointing: bool) -> None:
    model = clone("llama")
    if checkpointing:
        model.activation_checkpointing_enable()
    before = hooks(model)
    loss = model(batch()).loss
    assert hooks(model) == before
    loss.backward()
    assert hooks(model) == before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_no_hook_stays_after_an_error_and_the_next_step_is_right(side: str, checkpointing: bool) -> None:
    model, expected = clone("llama"), clone("llama")(batch()).loss.detach()
    if checkpointing:
        model.activation_checkpointing_enable()

    before = hooks(model)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("as planned")

    handle = model.get_submodule(side).model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="as planned"):
        model(batch())
    handle.remove()
    assert hooks(model) == before
    assert torch.equal(model(batch()).loss.detach(), expected)


def test_activations_are_released_with_the_loss() -> None:
    """Nothing of a forward pass is kept by the model once its output is gone."""
    import gc
    import weakref

    model, kept = clone("llama"), []
    handle = model.student.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, output: kept.append(weakref.ref(output))
    )
    output = model(batch())
    handle.remove()
    del output
    gc.collect()
    assert [ref() for ref in kept] == [None]


# --- padding ----------------------------------------------------------------------------------------------------------

LENGTHS = (5, 12, 8)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (1, length), generator=generator) for length in LENGTHS]


def padded(side: str) -> dict[str, Tensor]:
    """All sequences in one batch; the ids of the padding are those of real tokens, which only the mask tells apart."""
    ids, mask = torch.full((3, 12), 7), torch.zeros(3, 12, dtype=torch.long)
    for row, sequence in enumerate(sequences()):
        length = sequence.shape[1]
        place = slice(0, length) if side == "right" else slice(12 - length, 12)
        ids[row, place], mask[row, place] = sequence[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, side: str) -> None:
    # Fully masked rows, which left padding makes, are not a number in transformers' eager attention in float64.
    model = clone(family, torch.float64 if side == "right" else torch.float32)
    counts = torch.tensor([sum(LENGTHS) - len(LENGTHS), sum(LENGTHS)])
    truth: dict[str, Tensor] = {}
    for sequence in sequences():
        output = model(sequence, num_items_in_batch=counts)
        output.loss.backward()
        for name, value in terms(output).items():
            truth[name] = truth.get(name, torch.zeros_like(value)) + value
    gradients = pulled_gradients(model)
    model.factors.zero_grad()
    output = model(**padded(side))
    output.loss.backward()
    # Some families take norms and softmax in float32 in any case.
    assert_close(terms(output), truth, 1e-7 if side == "right" else 1e-4)
    assert_close(pulled_gradients(model), gradients, 1e-6 if side == "right" else 1e-4)


def test_what_the_padding_holds_changes_nothing() -> None:
    model, inputs = clone("llama", torch.float64), padded("right")
    expected = terms(model(**inputs))
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 90)
    assert_close(terms(model(**inputs)), expected, 1e-12)


# --- kernels and order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral"])
def test_attention_kernels_agree(family: str) -> None:
    eager, teacher = clone(family), tiny_model(family)
    teacher.set_attn_implementation("sdpa")
    sdpa = CloneModel(teacher, 16, factor_std=0.2, kl_weight=0.7).train()
    outputs = [model(**padded("right")) for model in (eager, sdpa)]
    for output in outputs:
        output.loss.backward()
    assert_close(terms(outputs[1]), terms(outputs[0]), 1e-4)
    assert_close(pulled_gradients(sdpa), pulled_gradients(eager), 1e-4)


def test_the_order_of_the_rows_changes_nothing() -> None:
    model, ids = clone("qwen3", torch.float64), batch(rows=4)
    assert_close(terms(model(ids.flip(0))), terms(model(ids)), 1e-10)
