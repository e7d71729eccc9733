"""Regressions from summed moments against dense least squares."""

from __future__ import annotations

import pytest
import torch

from lowrank_clone.starts.calibration.regression import Ridge, tied_gains


def test_ridge_is_the_normal_equation() -> None:
    x, y, w = torch.randn(50, 5).double(), torch.randn(50, 3).double(), torch.rand(50, 1).double()
    moments = Ridge()
    for part in range(5):
        rows = slice(10 * part, 10 * part + 10)
        moments.add(x[rows], y[rows], w[rows])
    lam = 0.1 * (w * x).square().sum() / 5
    stacked = torch.cat([w * x, lam.sqrt() * torch.eye(5)])
    expected = torch.linalg.lstsq(stacked, torch.cat([w * y, torch.zeros(5, 3)])).solution
    assert torch.allclose(moments.solve(0.1), expected, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_tied_gains_are_least_squares_of_the_logits(with_bias: bool) -> None:
    z, head, gains = torch.randn(6, 4), torch.randn(30, 6), torch.randn(4)
    bias = torch.randn(4) * with_bias
    u = torch.randn(200, 4) + 1
    moments = Ridge()
    moments.add(u, (gains * u + bias) @ z.T)
    found = tied_gains(moments, z, head, with_bias, 1e-4)
    for got, expected in zip(found, (gains, bias), strict=True):
        assert torch.allclose(got.float(), expected, atol=1e-2)
