"""Norms of the residual width, whatever a family calls them and however it keeps their gains.

A norm is told by what it does: it takes one tensor and returns one of the same shape, and owns vectors only. With
`u(x)` the normalised input, it gives `gain * u(x) + bias`; some families keep `gain`, others `gain - 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """One norm's convention: `gain = weight + offset`; `centers` if it subtracts the mean over channels."""

    module: str
    weight: str | None
    bias: str | None
    offset: float
    centers: bool

    def unit(self, x: Tensor) -> Tensor:
        """`u(x)` [n, d] of `x` [..., d], float32."""
        return unit(x, self.centers)


def unit(x: Tensor, center: bool = False) -> Tensor:
    """Every token of `x` [..., d] divided by its root mean square over channels: [n, d], float32."""
    x = x.flatten(0, -2).float()
    if center:
        x = x - x.mean(-1, keepdim=True)
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


@torch.no_grad()
def read_norm(name: str, module: nn.Module, weight: str | None, bias: str | None) -> Norm:
    """Find the convention of a float32 norm by running it on known numbers; `weight` and `bias` name its vectors."""
    vectors = dict(module.named_parameters(recurse=False))
    device, width = next(iter(vectors.values())).device, len(next(iter(vectors.values())))
    probe = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).to(device)
    kept = {key: vector.detach().clone() for key, vector in vectors.items()}
    try:
        for vector in vectors.values():
            vector.zero_()
        zero, offset = module(probe), 0.0
        if weight is not None:
            own = vectors[weight.rpartition(".")[2]]
            slope = module_at(module, own, 1.0, probe) - zero
            offset = float((zero * slope).sum() / slope.square().sum().clamp_min(1e-30))
            own.fill_(1.0 - round(offset))
        centers = torch.allclose(module(probe), module(probe + 1.0), atol=1e-3)
    finally:
        for key, vector in vectors.items():
            vector.copy_(kept[key])
    return Norm(name, weight, bias, round(offset, 3), centers)


def module_at(module: nn.Module, vector: Tensor, value: float, x: Tensor) -> Tensor:
    """The module's output with one of its vectors set to `value`."""
    vector.fill_(value)
    return module(x)
