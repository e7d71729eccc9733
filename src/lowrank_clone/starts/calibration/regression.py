"""Regressions from moments that are summed over batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ...precision import to_float64


class Ridge:
    """`argmin_A  sum_i w_i^2 |x_i A - y_i|^2 + lam * mean(diag X'X) * |A|^2`,  x: [n, p], y: [n, q], A: [p, q].

    Products are float32 per batch, their sums float64 (on the CPU where the device has no float64), so the size of the
    statistics and their precision do not depend on the number of tokens, nor the result on how they are batched.
    """

    def __init__(self) -> None:
        self.xx = self.xy = self.sx = self.sy = torch.zeros(())
        self.count = torch.zeros(())
        self._empty = True

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Take in tokens `x` [..., p] and `y` [..., q], each multiplied by its `weight` [n, 1]."""
        x, y = x.flatten(0, -2).float(), y.flatten(0, -2).float()
        one = x.new_ones(len(x), 1) if weight is None else weight
        x, y = x * one, y * one
        sums = [to_float64(v) for v in (x.mT @ x, x.mT @ y, (one * x).sum(0), (one * y).sum(0), one.square().sum())]
        if self._empty:
            self.xx, self.xy, self.sx, self.sy, self.count = sums
            self._empty = False
        else:
            for total, part in zip((self.xx, self.xy, self.sx, self.sy, self.count), sums, strict=True):
                total += part

    def solve(self, lam: float) -> Tensor:
        """`A` [p, q], float64."""
        return damped_solve(self.xx, self.xy, lam)


class Diagonal:
    """`y_j ~ gain_j x_j + bias_j`, channel by channel; x, y: [n, d]."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in inputs and outputs of more tokens, [..., d] each."""
        x, y = x.flatten(0, -2).float(), y.flatten(0, -2).float()
        sums = to_float64(torch.stack([v.sum(0) for v in (x * x, x * y, x, y, torch.ones_like(x))]))
        self._sums = sums if self._sums is None else self._sums + sums

    def solve(self, with_bias: bool) -> tuple[Tensor, Tensor]:
        """Gains and biases, [d] each, float64; biases 0 unless wanted."""
        assert self._sums is not None
        xx, xy, x, y, n = self._sums
        if not with_bias:
            return xy / xx.clamp_min(1e-30), torch.zeros_like(x)
        gain = (xy - x * y / n) / (xx - x * x / n).clamp_min(1e-30)
        return gain, (y - gain * x) / n

    def ratio(self) -> float:
        """One gain for all channels."""
        assert self._sums is not None
        xx, xy = self._sums[:2].sum(1).tolist()
        return xy / max(xx, 1e-30)


def tied_gains(moments: Ridge, z: Tensor, weight: Tensor, with_bias: bool, lam: float) -> tuple[Tensor, Tensor]:
    """Gains `g` and biases `b` of the norm before a tied head: `min sum |E Z (g u + b) - E y|^2`, u: [d_S], y: [d_T].

    Args:
        moments: Of `u` and `y`. z: The tied factor [d_T, d_S]. weight: The teacher's head `E` [V, d_T].
    """
    gram, z = to_float64(weight.mT @ weight), to_float64(z)
    seen = gram @ z  # [d_T, d_S]
    inner = z.mT @ seen
    xx, xy = moments.xx, moments.xy
    if with_bias:
        xx = xx - torch.outer(moments.sx, moments.sx) / moments.count
        xy = xy - torch.outer(moments.sx, moments.sy) / moments.count
    gains = damped_solve(inner * xx, (xy * seen.mT).sum(1), lam)
    if not with_bias:
        return gains, torch.zeros_like(gains)
    missing = (seen.mT @ moments.sy - inner @ (gains * moments.sx)) / moments.count
    return gains, damped_solve(inner, missing, lam)


def damped_solve(xx: Tensor, xy: Tensor, lam: float) -> Tensor:
    """`(X'X + lam * mean(diag X'X) I)^-1 X'Y`."""
    damped = xx.clone()
    damped.diagonal().add_(lam * damped.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return torch.linalg.solve(damped, xy)
