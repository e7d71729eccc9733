"""Norms of the residual width, whatever a family calls them and however it keeps their gains.

A norm is told by what it does: it takes one tensor and returns one of the same shape, and owns vectors only. With
`u(x)` the normalised input, it gives `gain * u(x) + bias`; some families keep `gain`, others `gain - 1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...plan.layers import model_blocks
from ...plan.roles import Plan, Role
from .blockwise import Call, watch_calls


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


def inverse_rms(x: Tensor) -> Tensor:
    """One over each token's root mean square over channels, [n, 1] float32, of `x` [..., d]."""
    return x.flatten(0, -2).float().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12).reciprocal()


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
            own.fill_(1.0)
            slope = module(probe) - zero
            offset = float((zero * slope).sum() / slope.square().sum().clamp_min(1e-30))
            own.fill_(1.0 - round(offset))
        centers = torch.allclose(module(probe), module(probe + 1.0), atol=1e-3)
    finally:
        for key, vector in vectors.items():
            vector.copy_(kept[key])
    return Norm(name, weight, bias, round(offset, 3), centers)


def find_norms(model: PreTrainedModel, plan: Plan, ids: Tensor) -> dict[str, Norm]:
    """Every norm of the residual width that runs, by its module, in the order in which they run.

    `model` is the student in float32: its norms have the conventions of the teacher's.
    """
    calls: dict[str, Call] = {}
    owners, blocks = _vector_owners(plan), model_blocks(model)
    with watch_calls(model, owners, calls.__setitem__):
        model(input_ids=ids, use_cache=False)
    norms: dict[str, Norm] = {}
    for name, call in calls.items():
        single = len(call.args) + len(call.kwargs) == 1 and isinstance(call.output, Tensor)
        if name not in blocks and single and call.x.shape == call.y.shape:
            weight, bias = _weight_and_bias(owners[name])
            norms[name] = read_norm(name, model.get_submodule(name), weight, bias)
    return norms


def outer_norms(norms: Mapping[str, Norm], blocks: Sequence[str]) -> tuple[Norm | None, Norm | None]:
    """The norm that last runs before the blocks, and the one that last runs after them."""
    inside = [any(name.startswith(block + ".") for block in blocks) for name in norms]
    first = inside.index(True) if True in inside else 0
    before = [norm for i, norm in enumerate(norms.values()) if not inside[i] and i < first]
    after = [norm for i, norm in enumerate(norms.values()) if not inside[i] and i >= first]
    return before[-1] if before else None, after[-1] if after else None


def _vector_owners(plan: Plan) -> dict[str, list[Role]]:
    """Modules that own vectors of the residual width and, they and all inside them, no matrix of it."""
    owners: dict[str, list[Role]] = {}
    for role in plan.of_kind("vector"):
        owners.setdefault(role.module, []).append(role)
    mixed = {role.module for role in plan.of_kind("read", "write", "bias")}
    return {
        name: roles
        for name, roles in owners.items()
        if not any(module == name or module.startswith(name + ".") for module in mixed)
    }


def _weight_and_bias(roles: Iterable[Role]) -> tuple[str | None, str | None]:
    """Which vector multiplies and which is added."""
    names = [role.name for role in roles]
    weight = next((name for name in names if name.endswith("weight")), None)
    bias = next((name for name in names if name.endswith("bias")), None)
    return weight, bias
