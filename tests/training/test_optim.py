"""`bind`: any torch optimiser steps the factors as if the products had been written out, and the student follows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import generated, naive_objective, relative_error
from tiny import batch, tiny_model
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lowrank_clone.model import CloneModel
from lowrank_clone.training.optim import MuonAdamW, bind

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=1e-2),
    "momentum": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: Adam(parameters, lr=1e-3),
    "adamw": lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "muon": lambda parameters: MuonAdamW(parameters, lr=1e-3, weight_decay=0.1),
}
NORM = "model.layers.0.input_layernorm.weight"


def clone(family: str = "starcoder2", **options: Any) -> CloneModel:
    options = {"factor_std": 0.2, **options}
    return CloneModel(tiny_model(family, dtype=options.pop("teacher", torch.float64)), 16, **options).train()


def naive_steps(model: CloneModel, optimizer_of: Any, steps: int, max_norm: float | None) -> dict[str, Tensor]:
    """Factors after steps with gradients from autograd through the products; the model itself is left behind."""
    factors = {name: torch.nn.Parameter(value.detach().clone()) for name, value in model.factors.items()}
    optimizer = optimizer_of(list(factors.values()))
    for step in range(steps):
        model.factors.load({name: value.detach() for name, value in factors.items()})
        for name, gradient in naive_objective(model, batch(seed=step)).gradients.items():
            factors[name].grad = gradient
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(factors.values(), max_norm)
        optimizer.step()
    return {name: value.detach() for name, value in factors.items()}


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bound_steps_equal_steps_through_the_products(optimizer: str, max_norm: float | None) -> None:
    expected = naive_steps(clone(), OPTIMIZERS[optimizer], 4, max_norm)
    model = clone()
    bound = bind(OPTIMIZERS[optimizer](model.factors.parameters()), model.factors, max_norm)
    for step in range(4):
        model(batch(seed=step)).loss.backward()
        bound.step()
    for name, value in expected.items():
        assert relative_error(model.factors[name].detach(), value) < 1e-9, name


def test_the_student_is_up_to_date_after_a_step_and_gradients_are_gone() -> None:
    model = clone()
    bound = bind(AdamW(model.factors.parameters(), lr=1e-3), model.factors)
    before = {name: p.detach().clone() for name, p in model.student.named_parameters()}
    model(batch()).loss.backward()
    bound.step()
    after = dict(model.student.named_parameters())
    for name, weight in generated(model, model.factors).items():
        assert torch.allclose(after[name], weight), name
        assert torch.equal(after[name], before[name]) == (model.plan.roles[name].kind == "inherited"), name
    assert all(p.grad is None for p in [*model.student.parameters(), *model.factors.parameters()])
    for name, leaf in model.targets.items():
        assert torch.equal(leaf, model.factors[name]) and leaf.grad is None


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e9])
def test_the_clipped_norm_is_that_of_the_factors_gradients(limit: float) -> None:
    model, seen = clone(), []
    truth = naive_objective(model, batch()).gradients
    norm = torch.stack([gradient.norm() for gradient in truth.values()]).norm()
    optimizer = SGD(model.factors.parameters(), lr=0.0)
    bound = bind(optimizer, model.factors, max_grad_norm=limit)
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in model.factors.parameters()]).norm())
    )
    model(batch()).loss.backward()
    bound.step()
    assert float(seen[0]) == pytest.approx(min(limit, float(norm)), rel=1e-5)


def test_schedulers_drive_the_same_optimiser() -> None:
    model = clone()
    optimizer = SGD(model.factors.parameters(), lr=1.0)
    bound = bind(optimizer, model.factors)
    assert bound is optimizer
    scheduler = torch.optim.lr_scheduler.LambdaLR(bound, lambda step: 1e-2 if step == 0 else 0.0)
    model(batch()).loss.backward()
    bound.step()
    scheduler.step()
    moved = model.factors[NORM].detach().clone()
    model(batch()).loss.backward()
    bound.step()
    assert torch.equal(model.factors[NORM], moved) and not torch.equal(moved, torch.ones(16))


@pytest.mark.parametrize("kind", [AdamW, MuonAdamW])
def test_param_groups_and_state_are_an_ordinary_optimiser_s(kind: Any) -> None:
    model, other = clone(), clone()
    optimizers = []
    for each in (model, other):
        matrices = [p for p in each.factors.parameters() if p.ndim > 1]
        vectors = [p for p in each.factors.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizers.append(bind(kind(groups, lr=1e-3), each.factors))
    model(batch()).loss.backward()
    optimizers[0].step()
    other.factors.load(model.factors.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for each, optimizer in zip((model, other), optimizers, strict=True):
        each(batch(seed=2)).loss.backward()
        optimizer.step()
    assert all(torch.equal(model.factors[name], other.factors[name]) for name in model.factors)


def test_muon_steps_alike_in_every_direction_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    matrix, vector, experts = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((24, 16), (16,), (2, 8, 16)))
    alone = [torch.nn.Parameter(p.detach().clone()) for p in (vector, experts)]
    before = matrix.detach().clone()
    both, adamw = MuonAdamW([matrix, vector, experts], lr=1e-3, betas=(0.9, 0.95)), AdamW(alone, 1e-3, (0.9, 0.95))
    for group in adamw.param_groups:
        group["weight_decay"] = 0.0
    # One direction's gradient is 10,000 times the others', as along a massive activation.
    matrix.grad = torch.randn(24, 16) + 1e4 * torch.outer(torch.ones(24), torch.ones(16))
    for p, same in zip((vector, experts), alone, strict=True):
        p.grad = torch.randn_like(p)
        same.grad = p.grad.clone()
    both.step()
    adamw.step()
    largest = torch.linalg.matrix_norm(matrix.detach() - before, 2)
    assert largest < 1.5 * 1e-3 * 0.2 * 24**0.5  # a sign matrix, Adam's first step, has 1e-3 sqrt(24 x 16)
    assert torch.equal(vector, alone[0]) and torch.equal(experts, alone[1])


def test_norms_of_a_bfloat16_student_move_at_a_small_learning_rate() -> None:
    """At 1e-4 a bfloat16 norm at 1.0 would round every step away; its float32 master gathers them."""
    model = clone("llama", teacher=torch.bfloat16)
    bound = bind(AdamW(model.factors.parameters(), lr=1e-4, weight_decay=0.0), model.factors)
    norm = model.student.model.layers[0].input_layernorm.weight
    for step in range(100):
        model(batch(seed=step % 2)).loss.backward()
        bound.step()
        if step == 0:
            first = (model.factors[NORM].detach() - 1).abs()
            assert first.min() > 5e-5 and torch.equal(norm, torch.ones_like(norm))
    assert model.factors[NORM].dtype == torch.float32 and norm.dtype == torch.bfloat16
    assert (norm != 1).float().mean() > 0.5
    assert torch.equal(norm, model.factors[NORM].bfloat16())


def test_training_in_bfloat16_lowers_the_loss() -> None:
    model = clone("llama", teacher=torch.bfloat16)
    bound = bind(AdamW(model.factors.parameters(), lr=3e-3), model.factors, max_grad_norm=1.0)
    losses = []
    for _ in range(20):
        loss = model(batch()).loss
        loss.backward()
        bound.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_any_number_of_micro_batches_is_pulled_once() -> None:
    model, pulls = clone(), []
    pull = model.factors.pull
    model.factors.pull = lambda: (pulls.append(1), pull())[1]
    bound = bind(SGD(model.factors.parameters(), lr=1e-3), model.factors)
    for seed in range(5):
        model(batch(seed=seed)).loss.backward()
    bound.step()
    assert pulls == [1]
