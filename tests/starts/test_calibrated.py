"""The calibrated start: exact where a narrower student can be, better than random, and the same however fed."""

from __future__ import annotations

import pytest
import torch
from oracles import hooks
from tiny import FAMILIES, batch, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from lowrank_clone.errors import InputError
from lowrank_clone.factors.bases import Projected
from lowrank_clone.model import CloneModel
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.roles import Plan
from lowrank_clone.starts.calibrated import calibrated_start
from lowrank_clone.starts.calibration.norms import find_norms
from lowrank_clone.starts.random import random_start

WIDTH = 16
TEXT = list(batch(32, 32, seed=5).split(8))
HELD_OUT = batch(8, 32, seed=6)


def start(
    teacher: PreTrainedModel, width: int = WIDTH, text: list[Tensor] = TEXT, basis: str = "reads"
) -> dict[str, Tensor]:
    return calibrated_start(teacher, make_plan(teacher.config, width), text, basis=basis, progress=False)


@torch.no_grad()
def divergence(teacher: PreTrainedModel, factors: dict[str, Tensor], width: int = WIDTH) -> float:
    """Mean KL(teacher || student) on text that no start has seen."""
    student = CloneModel(teacher, width, start=factors, dtype=torch.float32).student
    p, q = (model(HELD_OUT).logits.float().log_softmax(-1) for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def confine(teacher: PreTrainedModel, plan: Plan, subspace: Tensor) -> None:
    """Rewrite a teacher so that its stream never leaves the span of `subspace` [d_T, k], orthogonal to the mean.

    Gains that would turn it out of there (behind a write, or between the stream and a tied head) become one number.
    """
    projector = subspace @ subspace.T
    last = list(find_norms(teacher, plan, HELD_OUT))[-1]
    weights = dict(teacher.named_parameters())
    for role in plan.roles.values():
        weight = weights[role.name]
        if role.kind in ("write", "bias") or role.group == "embedding":
            weight.copy_((weight.movedim(role.axis, -1) @ projector).movedim(-1, role.axis))
        elif role.kind == "vector" and (role.module == last or "post" in role.module):
            weight.fill_(0.7 if role.name.endswith("weight") else 0.0)
        elif role.kind == "vector" and role.name.endswith("bias"):
            gain = weights[role.name.replace("bias", "weight")]
            weight.copy_(gain * (projector @ weight))


@pytest.mark.parametrize("family", [*FAMILIES])
def test_exact_where_the_stream_has_only_as_many_dimensions(family: str) -> None:
    teacher = tiny_model(family)
    plan = make_plan(teacher.config, WIDTH)
    directions = torch.cat([torch.ones(24, 1), torch.randn(24, WIDTH - 1)], 1)
    confine(teacher, plan, torch.linalg.qr(directions)[0][:, 1:])
    assert divergence(teacher, start(teacher)) < 0.01 * divergence(teacher, random_start(plan))


@pytest.mark.parametrize("family", [*FAMILIES])
def test_better_than_random_with_norms_and_links(family: str) -> None:
    teacher = tiny_model(family)
    plan = make_plan(teacher.config, WIDTH)
    factors = start(teacher)
    named = plan.of_kind("read", "write", "vector")
    assert set(factors) == {role.name for role in named}
    for role in named:
        shape = role.student_shape if role.kind == "vector" else (24, WIDTH)
        assert factors[role.name].shape == shape and factors[role.name].dtype == torch.float32
        assert factors[role.name].isfinite().all()
    assert divergence(teacher, factors) < 0.75 * divergence(teacher, random_start(plan))

    student = CloneModel(teacher, WIDTH, start=factors).student
    weights, basis = dict(student.named_parameters()), dict(teacher.named_parameters())
    for role in plan.of_kind("read", "write", "bias"):
        expected = Projected(basis[role.name], role.axis).generate(factors[role.factor])
        assert torch.allclose(weights[role.name], expected, atol=1e-6)
    for role in plan.of_kind("vector"):
        assert torch.equal(weights[role.name], factors[role.name])


def test_the_encoder_of_reads_beats_channels() -> None:
    for family in ("llama", "gemma"):
        teacher = tiny_model(family)
        assert divergence(teacher, start(teacher)) < divergence(teacher, start(teacher, basis="channels"))


def test_pca_serves_a_head_of_its_own() -> None:
    teacher = tiny_model("llama")
    plan = make_plan(teacher.config, WIDTH)
    assert divergence(teacher, start(teacher, basis="pca")) < 0.75 * divergence(teacher, random_start(plan))


def test_one_factor_for_embedding_and_head() -> None:
    teacher = tiny_model("llama")
    plan = make_plan(teacher.config, WIDTH)
    factors = calibrated_start(teacher, plan, TEXT, share_head=True, progress=False)
    assert torch.equal(factors["lm_head.weight"], factors["model.embed_tokens.weight"])
    assert divergence(teacher, factors) < 0.75 * divergence(teacher, random_start(plan))


@pytest.mark.parametrize("family", ["llama", "starcoder2", "gemma2", "mixtral"])
def test_batching_changes_nothing(family: str) -> None:
    teacher = tiny_model(family)
    whole = start(teacher, text=[torch.cat(TEXT)])
    split = start(teacher, text=[row[None] for ids in TEXT for row in ids])
    assert abs(divergence(teacher, whole) - divergence(teacher, split)) < 1e-2 * divergence(teacher, whole)


def test_deterministic_and_without_a_trace() -> None:
    teacher = tiny_model("llama").train()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    state = torch.get_rng_state()
    one, two = start(teacher), start(teacher)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)
    assert teacher.training and hooks(teacher) == 0
    assert not any("forward" in module.__dict__ for module in teacher.modules())
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


def test_a_bfloat16_teacher_gives_nearly_the_start_of_a_float32_one() -> None:
    teacher = tiny_model("gemma")
    exact = divergence(teacher, start(teacher))
    rounded = start(tiny_model("gemma").bfloat16())
    assert abs(divergence(teacher, rounded) - exact) < 0.1 * exact


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "svd"}, r"basis: got 'svd', expected one of reads, channels, pca"),
        ({"text": [batch(1, 20)]}, r"got 20 tokens .* needed at least the teacher's width 24.* give about 192"),
        ({"text": [batch(1, 20)] * 9}, r"got 20 tokens"),
        ({"text": []}, r"got no sequences"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(tiny_model("llama"), **change)


def test_pca_with_a_tied_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"`pca` does not go with a tied head.*use `reads`"):
        start(tiny_model("gemma"), basis="pca")
