"""Switch a group of matrices from `projected` to `dense` or `core` without changing a logit.

What a projected matrix can reach is a part of what is deployed (`sizes.reachable_share`); `dense` and `core` train all
of it from where the projected one stands (Dense-LRC and CORE-LRC, arXiv 2609.02006), at the same deployed shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..errors import InputError
from ..plan.roles import Plan, Role
from .bases import Core, Identity, LinearMap, Projected
from .factors import Factors, Link
from .links import TARGET
from .sharded import ShardedCore, ShardedProjected

KINDS = ("projected", "dense", "core")
# What a matrix of each kind can become with the same deployed weight. The others reach more than projected.
BECOMES = {"projected": KINDS, "dense": ("dense", "core"), "core": ("dense", "core")}
GROUPS = ("attention", "ffn", "experts", "embedding", "head")


def check_kinds(plan: Plan, kinds: Mapping[str, str]) -> dict[str, str]:
    """Check a mapping from group to kind, and complete it with `projected`.

    Raises:
        InputError: A group or kind has no such name, the plan has no such group, or `core` is asked of a vocabulary.
    """
    if not isinstance(kinds, Mapping):
        raise InputError(
            f"parameterization: got {kinds!r}, expected a kind for each group, for instance {{'attention': 'dense'}}"
        )
    present = {role.group for role in plan.of_kind("read", "write")}
    for group, kind in kinds.items():
        if group not in GROUPS:
            raise InputError(f"parameterization: got group `{group}`, expected one of {', '.join(GROUPS)}")
        if kind not in KINDS:
            raise InputError(f"parameterization.{group}: got `{kind}`, expected one of {', '.join(KINDS)}")
        if group not in present and kind != "projected":
            raise InputError(
                f"parameterization.{group}: `{plan.teacher_config.model_type}` has no such matrices here "
                f"(it has {', '.join(sorted(present))}); a tied head belongs to `embedding`"
            )
        if kind == "core" and group in ("embedding", "head"):
            raise InputError(
                f"parameterization.{group}: got `core`, expected projected or dense; a complete basis of the "
                "vocabulary's width would be vocabulary x vocabulary"
            )
    return {group: kinds.get(group, "projected") for group in GROUPS if group in present}


def check_start(theirs: Mapping[str, str], ours: Mapping[str, str], setting: str) -> None:
    """Check that factors of the kinds `theirs` can be the start of a run whose kinds at its first step are `ours`.

    | theirs    | ours      | the start is                                                               |
    |-----------|-----------|----------------------------------------------------------------------------|
    | projected | projected | their Z                                                                    |
    | projected | dense     | the weight that their Z generates                                          |
    | projected | core      | its coefficients in the complete basis, those of the complement 0          |
    | dense     | dense     | their weight                                                               |
    | dense     | core      | its coefficients in the complete basis                                     |
    | core      | core      | their coefficients                                                         |
    | core      | dense     | the weight that their coefficients generate                                |
    | dense, core | projected | refused: no Z generates that weight, and training it densely was not asked for |

    A switch later in the run changes nothing of this: until then the group is projected.

    Args:
        theirs, ours: Kind of each group; a group that is left out is projected.
        setting: What the user said, for the message.

    Raises:
        InputError: A group is dense or core there and projected here.
    """
    for group, kind in theirs.items():
        wanted = ours.get(group, "projected")
        if wanted not in BECOMES[kind]:
            raise InputError(
                f"{setting}: its {group} matrices are `{kind}`, this run's start `{wanted}`, expected dense or core; "
                f"no projected matrix is equal to them; set method.parameterization.{group} to {kind}"
            )


@torch.no_grad()
def reparameterize(
    factors: Factors, plan: Plan, teacher: Mapping[str, Tensor], current: dict[str, str], kinds: Mapping[str, str]
) -> dict[str, str]:
    """Move groups to new kinds in place; returns the kinds as they are then. The deployed weights stay what they are.

    Args:
        teacher: The teacher's parameters by name.
        current: Kind of each group of the plan.

    Raises:
        InputError: As `check_kinds`, a group would go back to `projected`, or the factors hold gradients.
    """
    check_kinds(plan, kinds)
    wanted = check_kinds(plan, {**current, **kinds})
    changed = {group for group in current if wanted[group] != current[group]}
    for group in sorted(changed):
        if wanted[group] not in BECOMES[current[group]]:
            raise InputError(
                f"parameterization.{group}: `{current[group]}` can't go back to projected; it can reach more"
            )
    if changed and any(factor.grad is not None for factor in factors.parameters()):
        raise InputError(
            "parameterization: the factors hold gradients, which those that take their place would not have; let the "
            "optimiser step, or call clone.factors.zero_grad(), before a switch"
        )
    for role in plan.of_kind("read", "write", "bias"):
        if role.group in changed:
            _switch(factors, role, teacher[role.name], wanted[role.group])
    factors.sort()
    return wanted


def _switch(factors: Factors, role: Role, weight: Tensor, kind: str) -> None:
    own = next(link for link in factors.links if link.name == role.name)
    value = own.basis.generate(factors[own.factor])
    if own.factor == role.name and any(link.factor == role.name and link is not own for link in factors.links):
        factors.rename(role.name, role.name + TARGET)
    basis = linear_map(role, kind, weight, value.dtype, factors.mesh)
    factors.replace(role.name, basis.inverse(value), [Link(own.leaf, basis, role.name, role.name)])


def linear_map(role: Role, kind: str, weight: Tensor, dtype: torch.dtype, mesh: DeviceMesh | None = None) -> LinearMap:
    """The map that generates the parameter of `role`, whose tensor in the teacher is `weight`, from its factor.

    Args:
        mesh: The processes, if factor and parameter are sharded.
    """
    if kind == "projected":
        assert role.axis is not None
        return Projected(weight, role.axis) if mesh is None else ShardedProjected(weight, role.axis, mesh)
    if kind == "core" and role.kind != "bias":
        assert role.axis is not None
        return Core(weight, role.axis, dtype) if mesh is None else ShardedCore(weight, role.axis, dtype, mesh)
    return Identity()
