"""Pull and push against autograd through `B Z`: the same loss, terms and gradients, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import generated, naive_objective, pulled_gradients, relative_error
from tiny import FAMILIES, batch, tiny_model
from torch import Tensor

from lowrank_clone.model import CloneModel

EXACT = 1e-12
# T^2 times a difference of nearly equal numbers: at T = 40 their last bits, in either implementation, weigh 1600 times.
KL_EXACT = 1e-11
# Each option with each other one at least once.
CASES = [
    pytest.param("student", "none", False, id="paper"),
    pytest.param("teacher", "target", False, id="teacher-width-normalised"),
    pytest.param("student", "target", True, id="normalised-padded"),
    pytest.param("teacher", "none", True, id="teacher-width-padded"),
]


def padded_batch() -> dict[str, Tensor]:
    """Three rows of 5, 12 and 9 tokens, padded on the right, with a prompt of three tokens that is not learned from."""
    ids = batch(rows=3)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[2, 9:] = 0
    labels = ids.clone()
    labels[1, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def clone_of(family: str, **options: Any) -> CloneModel:
    overrides = options.pop("teacher", {})
    teacher = tiny_model(family, dtype=torch.float64, **overrides)
    teacher.set_experts_implementation("eager")  # the grouped kernels know no float64
    return CloneModel(teacher, 16, factor_std=0.2, kl_weight=0.7, clone_weight=0.3, **options).train()


def assert_exact(clone: CloneModel, inputs: dict[str, Tensor], **options: Any) -> None:
    truth = naive_objective(clone, **inputs, **options)
    output = clone(**inputs)
    output.loss.backward()
    for name in ("loss", "lm", "kl", "clone"):
        assert relative_error(output[name], getattr(truth, name)) < (KL_EXACT if name == "kl" else EXACT), name
    assert output.taps.keys() == truth.taps.keys()
    for name, value in truth.taps.items():
        assert relative_error(output.taps[name], value) < EXACT, name
    gradients = pulled_gradients(clone)
    assert gradients.keys() == truth.gradients.keys()
    assert sum(bool(gradient.any()) for gradient in truth.gradients.values()) == len(gradients)
    for name, gradient in truth.gradients.items():
        assert relative_error(gradients[name], gradient) < EXACT, name


@pytest.mark.parametrize(("attn_out_tap", "normalization", "padded"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pull_equals_autograd_through_the_product(
    family: str, attn_out_tap: Any, normalization: Any, padded: bool
) -> None:
    options = {"attn_out_tap": attn_out_tap, "clone_normalization": normalization}
    inputs = padded_batch() if padded else {"input_ids": batch()}
    assert_exact(clone_of(family, **options), inputs, **options)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [({"tie_word_embeddings": True}, {}), ({"tie_word_embeddings": True}, {"tie_word_embeddings": False})],
    ids=["tied", "untied-in-the-student"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_pull_equals_autograd_with_tied_heads(family: str, teacher: dict[str, Any], student: dict[str, Any]) -> None:
    clone = clone_of(family, teacher=teacher, student=student)
    assert (clone.student.lm_head.weight is clone.student.model.embed_tokens.weight) == (not student)
    assert_exact(clone, {"input_ids": batch()})


def test_pull_equals_autograd_with_every_bias_of_llama() -> None:
    clone = clone_of("llama", teacher={"attention_bias": True, "mlp_bias": True})
    assert len(clone.plan.of_kind("bias")) == 4
    assert_exact(clone, padded_batch())


def test_a_second_batch_adds_to_the_gradients() -> None:
    clone, other = clone_of("qwen3"), {"input_ids": batch(seed=5)}
    truths = [naive_objective(clone, batch()), naive_objective(clone, **other)]
    clone(batch()).loss.backward()
    clone.factors.pull()
    clone(**other).loss.backward()
    for name, gradient in pulled_gradients(clone).items():
        assert relative_error(gradient, truths[0].gradients[name] + truths[1].gradients[name]) < EXACT, name


@pytest.mark.parametrize("family", FAMILIES)
def test_push_generates_the_products(family: str) -> None:
    clone = clone_of(family)
    leaves = dict(clone.student.named_parameters())
    weights = generated(clone, clone.factors)
    assert weights.keys() == leaves.keys()
    for name, weight in weights.items():
        assert relative_error(leaves[name].detach(), weight.detach()) < 1e-15, name
    for name, leaf in clone.targets.items():
        assert torch.equal(leaf, clone.factors[name]), name
