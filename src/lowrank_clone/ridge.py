"""Ridge regression from moments that are summed over batches."""

from __future__ import annotations

import torch
from torch import Tensor


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
        sums = [wide(v) for v in (x.mT @ x, x.mT @ y, (one * x).sum(0), (one * y).sum(0), one.square().sum())]
        if self._empty:
            self.xx, self.xy, self.sx, self.sy, self.count = sums
            self._empty = False
        else:
            for total, part in zip((self.xx, self.xy, self.sx, self.sy, self.count), sums, strict=True):
                total += part

    def solve(self, lam: float) -> Tensor:
        """`A` [p, q], float64."""
        return damped_solve(self.xx, self.xy, lam)

    def solve_affine(self, lam: float) -> tuple[Tensor, Tensor]:
        """`A` [p, q] and a shift `b` [p] of `x` for `(x + b) A ~ y`, float64.

        `b` is the best for the slopes of the regression with a free intercept, `A` the best for that `b`.
        """
        slopes = damped_solve(self.xx - torch.outer(self.sx, self.sx) / self.count, self._centered_xy(), lam)
        missing = (self.sy - self.sx @ slopes) / self.count
        b = damped_solve(slopes @ slopes.mT, slopes @ missing, 1e-6)
        shifted = torch.outer(self.sx, b)
        xx = self.xx + shifted + shifted.mT + self.count * torch.outer(b, b)
        return damped_solve(xx, self.xy + torch.outer(b, self.sy), lam), b

    def _centered_xy(self) -> Tensor:
        return self.xy - torch.outer(self.sx, self.sy) / self.count


def wide(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def damped_solve(xx: Tensor, xy: Tensor, lam: float) -> Tensor:
    """`(X'X + lam * mean(diag X'X) I)^-1 X'Y`."""
    damped = xx.clone()
    damped.diagonal().add_(lam * damped.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return torch.linalg.solve(damped, xy)
