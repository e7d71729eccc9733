"""Factors: each basis is linear with its exact adjoint; assignment regenerates the student; names, shapes checked."""

from __future__ import annotations

import pytest
import torch
from oracles import relative_error
from tiny import batch, tiny_model
from torch import nn

from lowrank_clone.errors import InputError
from lowrank_clone.factors.bases import Core, Identity, LinearMap, Projected
from lowrank_clone.factors.factors import Factors, Link
from lowrank_clone.model import CloneModel
from lowrank_clone.precision import wide_dtype

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def clone(family: str = "llama", **options: object) -> CloneModel:
    return CloneModel(tiny_model(family), 16, **options)


# --- bases ------------------------------------------------------------------------------------------------------------

CASES = {
    "read": (lambda w: Projected(w, -1), (7, 6), (6, 4), (7, 4)),
    "write": (lambda w: Projected(w, -2), (6, 7), (6, 4), (4, 7)),
    "bias": (lambda w: Projected(w, -1), (6,), (6, 4), (4,)),
    "experts-read": (lambda w: Projected(w, -1), (3, 7, 6), (6, 4), (3, 7, 4)),
    "experts-write": (lambda w: Projected(w, -2), (3, 6, 7), (6, 4), (3, 4, 7)),
    "experts-bias": (lambda w: Projected(w, -1), (3, 6), (6, 4), (3, 4)),
    "identity": (lambda w: Identity(), (5, 4), (5, 4), (5, 4)),
    "core-read": (lambda w: Core(w, -1, torch.float64), (7, 6), (7, 4), (7, 4)),
    "core-write": (lambda w: Core(w, -2, torch.float64), (6, 7), (4, 7), (4, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_generate_is_linear_and_adjoint_is_its_transpose(case: str) -> None:
    make, weight, factor, leaf = CASES[case]
    basis: LinearMap = make(torch.randn(weight, dtype=torch.float64))
    x, y = torch.randn(factor, dtype=torch.float64), torch.randn(factor, dtype=torch.float64)
    g = torch.randn(leaf, dtype=torch.float64)
    assert basis.generate(x).shape == leaf and basis.adjoint(g).shape == factor
    both = basis.generate(2 * x + y)
    assert relative_error(both, 2 * basis.generate(x) + basis.generate(y)) < 1e-14
    # <W(x), g> = <x, W^T(g)>
    assert abs(float((basis.generate(x) * g).sum() - (x * basis.adjoint(g)).sum())) < 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if "core" not in case])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_is_generate_rounded_to_the_leaf(case: str, dtype: torch.dtype) -> None:
    make, weight, factor, leaf = CASES[case]
    basis, z = make(torch.randn(weight, dtype=dtype)), torch.randn(factor)
    deployed = nn.Parameter(torch.empty(leaf, dtype=dtype))
    with torch.no_grad():
        basis.write(z, deployed)
    assert torch.equal(deployed, basis.generate(z).to(dtype))


def test_projected_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert torch.equal(Projected(weight, -1).generate(z), torch.tensor([[4.0, 5.0], [10.0, 11.0]]))
    assert torch.equal(Projected(weight.T, -2).generate(z), torch.tensor([[4.0, 10.0], [5.0, 11.0]]))


def test_core_is_orthonormal() -> None:
    basis = Core(torch.randn(7, 4, dtype=torch.float64), -1, torch.float64)
    q = basis.generate(torch.eye(7, dtype=torch.float64))
    assert relative_error(q.T @ q, torch.eye(7, dtype=torch.float64)) < 1e-14


@pytest.mark.parametrize(
    ("leaf", "factor"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_factors_are_float32_masters(leaf: torch.dtype, factor: torch.dtype) -> None:
    assert wide_dtype(leaf) == factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_a_16_bit_student_are_the_rounded_float32_products(dtype: torch.dtype) -> None:
    model = CloneModel(tiny_model("qwen3", dtype=dtype), 16)
    assert {factor.dtype for factor in model.factors.values()} == {torch.float32}
    student, teacher = dict(model.student.named_parameters()), dict(model.teacher.named_parameters())
    for name, factor in model.factors.items():
        role = model.plan.roles[name]
        if role.kind == "vector":
            expected = factor
        else:
            wide = teacher[name].float()
            expected = wide @ factor if role.kind == "read" else factor.T @ wide
        assert student[name].dtype == dtype
        assert torch.equal(student[name], expected.to(dtype)), name


# --- the mapping ------------------------------------------------------------------------------------------------------


def test_factors_are_named_as_the_student_s_parameters() -> None:
    model = clone("starcoder2")
    trained = [role.name for role in model.plan.of_kind("read", "write", "vector")]
    assert sorted(model.factors) == sorted(trained) and len(model.factors) == len(trained)
    assert set(trained) <= {name for name, _ in model.student.named_parameters()}
    assert [name for name, _ in model.factors.named_parameters()] == list(model.factors)
    assert [id(p) for p in model.factors.parameters()] == [id(p) for p in model.factors.values()]


def test_the_random_start_is_normal_with_the_given_std_and_norms_are_one() -> None:
    model = CloneModel(tiny_model("llama", hidden_size=64), 32, factor_std=0.05, seed=3)
    matrices = torch.stack([model.factors[role.name] for role in model.plan.of_kind("read", "write")])
    assert abs(float(matrices.detach().std()) / 0.05 - 1) < 0.02 and abs(float(matrices.detach().mean())) < 1e-3
    assert len({float(z.detach().sum()) for z in matrices}) == len(matrices)
    for role in model.plan.of_kind("vector"):
        assert torch.equal(model.factors[role.name], torch.ones(32))


def test_the_start_depends_on_the_seed_alone() -> None:
    first = clone(seed=1)
    torch.manual_seed(99)
    again, other = clone(seed=1), clone(seed=2)
    assert torch.equal(first.factors[Q], again.factors[Q])
    assert not torch.equal(first.factors[Q], other.factors[Q])


@pytest.mark.parametrize("name", [Q, DOWN, NORM])
def test_assignment_regenerates_the_student(name: str) -> None:
    model = clone()
    before = {n: p.detach().clone() for n, p in model.student.named_parameters()}
    value = torch.randn_like(model.factors[name])
    parameter = model.factors[name]
    model.factors[name] = value
    assert model.factors[name] is parameter and torch.equal(parameter, value)
    weight, role = dict(model.teacher.named_parameters())[name], model.plan.roles[name]
    expected = {"read": lambda: weight @ value, "write": lambda: value.T @ weight, "vector": lambda: value}[role.kind]()
    after = dict(model.student.named_parameters())
    assert torch.allclose(after[name], expected, atol=1e-6)
    assert [n for n in before if not torch.equal(before[n], after[n])] == [name]


def test_assigning_a_write_moves_its_bias_and_its_tap_s_target() -> None:
    model = clone("starcoder2")
    name = "model.layers.0.mlp.c_proj.weight"
    value = torch.randn(24, 16)
    model.factors[name] = value
    bias = model.teacher.model.layers[0].mlp.c_proj.bias
    assert torch.allclose(model.student.model.layers[0].mlp.c_proj.bias, bias @ value, atol=1e-6)
    assert torch.equal(dict(model.targets.items())[name], value)


def test_assignment_does_not_keep_the_caller_s_tensor() -> None:
    model, value = clone(), torch.randn(24, 16)
    model.factors[Q] = value
    value.zero_()
    assert model.factors[Q].any()


def test_state_dict_and_load_restore_the_student() -> None:
    model, other = clone(seed=1), clone(seed=2)
    ids = batch()
    assert not torch.equal(model.student(ids).logits, other.student(ids).logits)
    other.factors.load(model.factors.state_dict())
    assert torch.equal(model.student(ids).logits, other.student(ids).logits)


def test_a_wrong_shape_is_refused_and_nothing_changes() -> None:
    model = clone()
    before = {name: value.clone() for name, value in model.factors.state_dict().items()}
    with pytest.raises(InputError, match=rf"factor `{Q}`: got shape \[16, 24\], expected \[24, 16\]"):
        model.factors.load({NORM: torch.zeros(16), Q: torch.zeros(16, 24)})
    assert all(torch.equal(before[name], value) for name, value in model.factors.items())


@pytest.mark.parametrize("name", ["nonsense", "lm_head.bias", "model.layers.9.mlp.up_proj.weight"])
def test_an_unknown_name_is_refused(name: str) -> None:
    model = clone()
    with pytest.raises(InputError, match=f"no factor is called `{name}`"):
        model.factors[name] = torch.zeros(24, 16)
    with pytest.raises(KeyError):
        model.factors[name]


def test_factors_can_not_be_removed() -> None:
    with pytest.raises(TypeError, match="can't be removed"):
        del clone().factors[Q]


# --- push and pull ----------------------------------------------------------------------------------------------------


def two_leaves() -> tuple[Factors, nn.Parameter, nn.Parameter]:
    """One factor that feeds a projected leaf and its own copy."""
    projected, copy = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(3, 2))
    basis = Projected(torch.randn(5, 3), -1)
    return (
        Factors({"z": torch.randn(3, 2)}, [Link(projected, basis, "z"), Link(copy, Identity(), "z")]),
        projected,
        copy,
    )


def test_pull_adds_up_leaves_and_earlier_pulls_and_releases_leaf_gradients() -> None:
    factors, projected, copy = two_leaves()
    weight = factors.links[0].basis.basis
    total = torch.zeros(3, 2)
    for _ in range(2):
        projected.grad, copy.grad = torch.randn(5, 2), torch.randn(3, 2)
        total += weight.T @ projected.grad + copy.grad
        factors.pull()
        assert projected.grad is None and copy.grad is None
    factors.pull()
    assert torch.allclose(factors["z"].grad, total, atol=1e-6)


def test_push_of_some_names_leaves_the_others() -> None:
    model = clone()
    with torch.no_grad():
        model.factors[Q].zero_()
        model.factors[DOWN].zero_()
    model.factors.push([Q])
    weights = dict(model.student.named_parameters())
    assert not weights[Q].any() and weights[DOWN].any()


def test_zero_grad_clears_factors_and_leaves() -> None:
    model = clone()
    model(batch()).loss.backward()
    model.factors.pull()
    model(batch()).loss.backward()
    model.factors.zero_grad()
    assert all(factor.grad is None for factor in model.factors.parameters())
    assert all(link.leaf.grad is None for link in model.factors.links)


def test_factors_stay_out_of_the_module_tree() -> None:
    model = clone()
    assert not {id(p) for p in model.parameters()} & {id(p) for p in model.factors.parameters()}
    assert not [name for name in model.state_dict() if "factor" in name]


def test_casting_the_module_leaves_factors_in_float32_and_pushes_into_the_new_leaves() -> None:
    model = clone().to(torch.bfloat16)
    assert {factor.dtype for factor in model.factors.values()} == {torch.float32}
    model.factors[NORM] = torch.full((16,), 1.0 + 2**-7)
    norm = model.student.model.layers[0].input_layernorm.weight
    assert norm.dtype == torch.bfloat16 and torch.equal(norm.float(), model.factors[NORM])
