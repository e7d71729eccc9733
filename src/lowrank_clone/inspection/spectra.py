"""Singular values of the trained factors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..factors.bases import Projected
from ..factors.factors import Factors
from ..factors.parameterize import TARGET
from ..plan.roles import Plan
from ..progress import track
from .activations import place_in_layer
from .ranks import entropy_rank


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a trained matrix, descending. `is_projection` tells a Z [d_T, d_S] from a matrix that is
    trained itself (`dense`, `core`). `place` is its module's name inside its layer."""

    factor: str
    layer: int | None
    place: str
    is_projection: bool
    values: tuple[float, ...]

    @property
    def condition(self) -> float:
        """Largest over smallest singular value; infinite for a rank-deficient matrix."""
        return self.values[0] / self.values[-1] if self.values[-1] > 0 else math.inf

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised squares, at most the number of values."""
        return entropy_rank(torch.tensor(self.values, dtype=torch.float64).square())


@torch.no_grad()
def factor_spectra(factors: Factors, plan: Plan, progress: bool = False) -> tuple[Spectrum, ...]:
    """Singular values of every trained matrix, in the plan's order. Vectors and stacks of experts are left out."""
    projections = {link.factor for link in factors.links if isinstance(link.basis, Projected)}
    order = {name: i for i, name in enumerate(plan.roles)}
    spectra = []
    names = sorted(factors, key=lambda name: order[name.removesuffix(TARGET)])
    for name in track(names, len(names), "singular values", "factor", progress):
        role, factor = plan.roles[name.removesuffix(TARGET)], factors[name].detach()
        if factor.ndim != 2:
            continue
        place = role.module if role.layer is None else place_in_layer(role.module, role.layer)
        values = tuple(torch.linalg.svdvals(factor).tolist())
        is_projection = name in projections or name.endswith(TARGET)
        spectra.append(Spectrum(name, role.layer, place, is_projection, values))
    return tuple(spectra)
