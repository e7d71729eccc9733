"""Singular values of factors."""

from __future__ import annotations

import math

import pytest
import torch
from inspected import clone_of

from lowrank_clone.factors.parameterize import TARGET
from lowrank_clone.inspection.spectra import factor_spectra


def test_spectra_are_the_factors_singular_values() -> None:
    clone = clone_of()
    one_hot = torch.eye(24, 16, dtype=torch.float64) * 3
    first = "model.layers.0.mlp.down_proj.weight"
    clone.factors[first] = one_hot
    found = {spectrum.factor: spectrum for spectrum in factor_spectra(clone.factors, clone.plan)}
    assert set(found) == {name for name, factor in clone.factors.items() if factor.ndim == 2}
    for name, spectrum in found.items():
        squares = torch.linalg.eigvalsh(clone.factors[name].detach().T @ clone.factors[name].detach()).flip(0)
        assert spectrum.values == pytest.approx(squares.sqrt().tolist(), rel=1e-6)
        assert spectrum.is_projection
    assert found[first].condition == pytest.approx(1)
    assert found[first].effective_rank == pytest.approx(16)
    assert (found[first].layer, found[first].place) == (0, "mlp.down_proj")
    clone.factors[first] = one_hot * (torch.arange(16) > 0)
    assert {s.factor: s for s in factor_spectra(clone.factors, clone.plan)}[first].condition == math.inf


def test_spectra_tell_projections_from_matrices_trained_themselves() -> None:
    clone = clone_of(parameterization={"ffn": "dense"})
    kinds = {s.factor: s.is_projection for s in factor_spectra(clone.factors, clone.plan)}
    down = "model.layers.0.mlp.down_proj.weight"
    assert not kinds[down]
    assert kinds[down + TARGET]
