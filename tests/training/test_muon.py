"""Muon's step against its definition, and against torch's own, which rounds to bfloat16."""

import pytest
import torch
from oracles import relative_error
from torch import nn
from torch.optim import Muon

from lowrank_clone.training.muon import orthogonal, step_muon


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (1, 4)])
def test_singular_vectors_stay_and_singular_values_come_near_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    x = s / s.norm()
    for _ in range(5):  # what the steps do to each singular value
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert relative_error(orthogonal(matrix), u @ torch.diag(x) @ v) < 1e-9
    assert float(x.min()) > 0.6 and float(x.max()) < 1.3


def test_steps_are_torchs_but_for_bfloat16() -> None:
    start = torch.randn(6, 10)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    muon = Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    state: dict[nn.Parameter, dict[str, torch.Tensor]] = {ours: {}}
    for _ in range(3):
        ours.grad = torch.randn(6, 10)
        theirs.grad = ours.grad.clone()
        step_muon([ours], state, **options)
        muon.step()
    assert relative_error(ours.detach() - start, theirs.detach() - start) < 2e-2
    assert relative_error(state[ours]["momentum_buffer"], muon.state[theirs]["momentum_buffer"]) < 1e-6
