"""Switching parameterisations changes no logit, deploys the same shapes, and has exact gradients."""

import pytest
import torch
from tiny import FAMILIES, batch, tiny_model

from lowrank_clone import CloneModel, InputError, bind
from lowrank_clone.factors.bases import Core
from lowrank_clone.training.optim import refresh


def make(family: str = "llama", dtype: torch.dtype = torch.float64, **options) -> CloneModel:
    teacher = tiny_model(family, dtype=dtype)
    if any(p.ndim == 3 for p in teacher.parameters()):
        teacher.set_experts_implementation("eager")  # the grouped kernels know no float64
    return CloneModel(teacher, 16, temperature=2.0, **options)


def logits(clone: CloneModel) -> torch.Tensor:
    with torch.no_grad():
        return clone.student(input_ids=batch()).logits


def kinds_for(clone: CloneModel, kind: str) -> dict[str, str]:
    groups = {role.group for role in clone.plan.of_kind("read", "write")}
    return {group: "dense" if group in ("embedding", "head") else kind for group in groups}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["dense", "core"])
def test_switch_changes_no_logit_and_no_shape(family: str, kind: str) -> None:
    clone = make(family)
    before, shapes = logits(clone), {n: p.shape for n, p in clone.student.named_parameters()}
    clone.reparameterize(kinds_for(clone, kind))
    clone.factors.push()
    torch.testing.assert_close(logits(clone), before, rtol=1e-9, atol=1e-9)
    assert {n: p.shape for n, p in clone.student.named_parameters()} == shapes


@pytest.mark.parametrize("kind", ["dense", "core"])
def test_loss_and_target_of_writes_survive_the_switch(kind: str) -> None:
    clone = make()
    before = clone(batch())
    clone.reparameterize(kinds_for(clone, kind))
    clone.factors.push()
    after = clone(batch())
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-9, atol=1e-9)
    assert "model.layers.0.mlp.down_proj.weight.Z" in clone.factors


def test_core_gradient_equals_autograd_through_the_explicit_basis() -> None:
    clone = make()
    name = "model.layers.0.mlp.gate_proj.weight"
    clone.reparameterize({"ffn": "core"})
    link = next(link for link in clone.factors.links if link.name == name)
    assert isinstance(link.basis, Core)
    inner = link.leaf.shape[0]
    basis = link.basis._rotate(torch.eye(inner, dtype=torch.float64), transpose=False)  # Q itself, [inner, inner]
    torch.testing.assert_close(basis.T @ basis, torch.eye(inner, dtype=torch.float64))
    coefficients = clone.factors[name].detach().clone().requires_grad_()
    torch.testing.assert_close(basis @ coefficients, link.leaf)
    clone(batch()).loss.backward()
    leaf_grad = link.leaf.grad.clone()
    ((basis @ coefficients) * leaf_grad).sum().backward()
    clone.factors.pull()
    torch.testing.assert_close(clone.factors[name].grad, coefficients.grad, rtol=1e-12, atol=1e-14)


def test_core_starts_with_no_part_in_the_complement_and_spans_the_teacher() -> None:
    clone = make()
    name = "model.layers.1.mlp.up_proj.weight"
    clone.reparameterize({"ffn": "core"})
    width = clone.plan.teacher_width
    coefficients = clone.factors[name]
    assert coefficients.shape[0] > width
    assert coefficients[width:].abs().max() < 1e-12 < coefficients[:width].abs().max()


def test_dense_training_leaves_the_column_space_that_projected_training_cannot() -> None:
    for kind, leaves in (("projected", False), ("dense", True)):
        clone = make(parameterization={"ffn": kind})
        name = "model.layers.0.mlp.gate_proj.weight"
        optimizer = bind(torch.optim.SGD(clone.factors.parameters(), lr=1e-2), clone.factors)
        clone(batch()).loss.backward()
        optimizer.step()
        teacher = dict(clone.teacher.named_parameters())[name]
        weight = dict(clone.student.named_parameters())[name]
        outside = weight - teacher @ torch.linalg.lstsq(teacher, weight).solution
        assert (outside.norm() > 1e-6 * weight.norm()) == leaves


def test_optimizer_follows_a_switch_and_keeps_what_is_still_there() -> None:
    clone = make()
    matrices = [p for p in clone.factors.parameters() if p.ndim > 1]
    vectors = [p for p in clone.factors.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=1e-3)
    bind(optimizer, clone.factors)
    clone(batch()).loss.backward()
    optimizer.step()
    target = clone.factors["model.layers.0.mlp.down_proj.weight"]
    moment = optimizer.state[target]["exp_avg"].clone()
    clone.reparameterize({"ffn": "dense"})
    refresh(optimizer, clone.factors)
    assert clone.factors["model.layers.0.mlp.down_proj.weight.Z"] is target
    assert torch.equal(optimizer.state[target]["exp_avg"], moment)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in clone.factors.parameters())
    assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])
    before = clone.factors["model.layers.0.mlp.gate_proj.weight"].detach().clone()
    clone(batch()).loss.backward()
    optimizer.step()
    assert not torch.equal(before, clone.factors["model.layers.0.mlp.gate_proj.weight"])


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"fnn": "dense"}, "expected one of attention, ffn, experts, embedding, head"),
        ({"ffn": "thick"}, "expected one of projected, dense, core"),
        ({"embedding": "core"}, "vocabulary"),
        ({"experts": "dense"}, "has no such matrices"),
    ],
)
def test_kinds_that_cannot_be_had_are_refused(kinds: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(parameterization=kinds)


def test_there_is_no_way_back_to_projected() -> None:
    clone = make(parameterization={"ffn": "dense"})
    with pytest.raises(InputError, match="can't go back"):
        clone.reparameterize({"ffn": "projected"})


def test_scratch_trains_everything_and_takes_nothing_from_the_teacher() -> None:
    torch.manual_seed(0)
    clone = make("qwen3", start="scratch", kl_weight=0.0, clone_weight=0.0)
    assert set(clone.factors) == {name for name, _ in clone.student.named_parameters()}
    output = clone(batch())
    assert output.kl is None and output.clone is None
    output.loss.backward()
    clone.factors.pull()
    assert all(factor.grad is not None for factor in clone.factors.parameters())


def test_shared_head_factor_serves_two_matrices() -> None:
    teacher_model = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=False)
    clone = CloneModel(teacher_model, 16, head_factor="embedding")
    assert "lm_head.weight" not in clone.factors
    teacher = dict(clone.teacher.named_parameters())
    factor = clone.factors["model.embed_tokens.weight"]
    torch.testing.assert_close(clone.student.lm_head.weight, teacher["lm_head.weight"] @ factor)
