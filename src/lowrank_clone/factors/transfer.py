"""Factors of one clone as those of another that hangs on the same teacher in another way, without changing a weight.

A stored clone says which factor generates each leaf (`links`) and how (`kinds`). What another clone of the same plan
needs follows from that wherever it is known exactly: a dense weight is what their Z generates, a target's Z is the
write's own, a head with a Z of its own takes the one that it shared. Anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..plan.roles import Plan
from ..shards import shard
from .factors import Factors
from .links import TARGET
from .parameterize import linear_map


def expected_links(plan: Plan, kinds: Mapping[str, str], share_head: bool, targets: Iterable[str]) -> dict[str, str]:
    """Leaf -> factor of a clone of these kinds (a group that is left out is projected), without any weights."""

    def factor_of(name: str) -> str:
        return name if kinds.get(plan.roles[name].group, "projected") == "projected" else name + TARGET

    embedding = next(role.name for role in plan.roles.values() if role.group == "embedding")
    links = {role.name: role.name for role in plan.of_kind("vector")}
    for role in plan.of_kind("read", "write", "bias"):
        assert role.factor is not None
        source = embedding if share_head and role.group == "head" else role.factor
        projected = kinds.get(role.group, "projected") == "projected"
        links[role.name] = factor_of(source) if projected else role.name
    return links | {name + TARGET: factor_of(name) for name in targets}


def sources(
    plan: Plan, theirs: Mapping[str, str], their_kinds: Mapping[str, str], ours: Mapping[str, str], where: str
) -> dict[str, tuple[str, str]]:
    """For each factor of ours: a leaf that it generates, and their factor that this leaf is known from.

    Args:
        theirs, ours: Leaf -> factor.
        where: What the stored clone is called in a message.

    Raises:
        InputError: A leaf is known from no factor, or leaves that share one here have different ones there.
    """
    found: dict[str, tuple[str, str]] = {}
    for leaf, factor in ours.items():
        write = leaf.removesuffix(TARGET)
        source = theirs.get(leaf)
        if source is None and write != leaf and their_kinds.get(plan.roles[write].group, "projected") == "projected":
            source = theirs.get(write)
        if source is None and write != leaf:
            raise InputError(
                f"{where}: it holds no Z for the target of the tap on `{write}`, which was not compared at the "
                "student's width there and is no longer projected; leave this tap out (method.taps), or compare as "
                "that run did (method.attn_out_tap)"
            )
        if source is None:
            raise InputError(f"{where}: it holds no factor for `{leaf}`; expected a checkpoint of the same plan")
        if factor in found and found[factor][1] != source:
            raise InputError(
                f"{where}: its `{leaf}` has a factor of its own, here it shares that of `{found[factor][0]}`; set "
                "method.head_factor to own"
            )
        found.setdefault(factor, (leaf, source))
    return found


@torch.no_grad()
def transfer(
    factors: Factors,
    plan: Plan,
    teacher: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    their_kinds: Mapping[str, str],
    found: Mapping[str, tuple[str, str]],
    values: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The value of every factor, from stored ones.

    Args:
        teacher: The teacher's parameters by name.
        kinds, their_kinds: Kind of each group here and there; `check_start` has accepted them.
        found: What `sources` returned.
        values: Their factors by name.
    """
    links = {link.name: link for link in factors.links}
    result = {}
    for factor, (leaf, source) in found.items():
        value = values[source].to(factors[factor].device, factors[factor].dtype)
        value = value if factors.mesh is None else shard(value, factors.mesh)
        group = plan.roles[leaf.removesuffix(TARGET)].group
        theirs = their_kinds.get(group, "projected")
        if leaf in plan.roles and theirs != kinds.get(group, "projected"):
            weight = linear_map(plan.roles[leaf], theirs, teacher[leaf], value.dtype, factors.mesh).generate(value)
            value = links[leaf].basis.inverse(weight)
        result[factor] = value
    return result
