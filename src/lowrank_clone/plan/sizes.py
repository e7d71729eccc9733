"""Sizes of a plan: what is deployed, what is trained, and how much of what is deployed training can reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from .decoder import attention_of
from .noise import training_noise
from .roles import Group, Plan, Role


@dataclass(frozen=True)
class SizeRow:
    """One group of a plan. `reachable` is the share of its deployed matrices' dimensions that training can reach."""

    group: str
    tensors: int
    deployed: int
    trained: int
    reachable: float | None


def size_rows(plan: Plan, kinds: Mapping[str, str] | None = None) -> list[SizeRow]:
    """A row for each group that the plan has.

    Args:
        kinds: Parameterisation by group (`projected` unless given).
    """
    rows = []
    for group in get_args(Group):
        roles = [role for role in plan.roles.values() if role.group == group]
        if roles:
            rows.append(_row(plan, group, roles, (kinds or {}).get(group, "projected")))
    return rows


def _row(plan: Plan, group: str, roles: list[Role], kind: str) -> SizeRow:
    deployed = sum(math.prod(role.student_shape) for role in roles)
    trained = sum(plan.trained(role, kind) for role in roles)
    matrices = [role for role in roles if role.kind in ("read", "write")]
    reach = None
    if matrices and kind != "projected":
        reach = 1.0
    elif matrices:
        reached = sum(reachable_share(plan, role) * math.prod(role.student_shape) for role in matrices)
        reach = reached / sum(math.prod(role.student_shape) for role in matrices)
    return SizeRow(group, len(roles), deployed, trained, reach)


def reachable_share(plan: Plan, role: Role) -> float:
    """Share of a projected matrix's dimensions that its factor moves: `B Z` stays in the column space of B, which has
    at most d_T of its `rows` dimensions (TWYD, arXiv 2609.02006: 1 - d_T / d_ff of an FFN matrix is never trained)."""
    rows = math.prod(role.student_shape) // plan.student_width
    return min(1.0, plan.teacher_width / rows)


def teacher_parameters(plan: Plan) -> int:
    """Parameters of the teacher that the student has too, tied ones once."""
    return sum(math.prod(role.teacher_shape) for role in plan.roles.values())


def remarks(plan: Plan) -> list[str]:
    """What a user should know of a plan besides its sizes."""
    found = []
    ours = plan.student_config.model_type
    theirs = plan.teacher_type or plan.teacher_config.model_type
    if ours != theirs:
        heads = plan.student_config.num_attention_heads
        found.append(
            f"The student is saved as type `{ours}`: the config of `{theirs}` refuses hidden_size={plan.student_width} "
            f"with {heads} heads, and `{ours}` is the same model (same weights, same logits)."
        )
    if attention_of(plan.teacher_config, "auto") == "eager":
        found.append(f"Attention: `{theirs}` has no sdpa, so `teacher.attn_implementation: auto` is eager.")
    experts = [role for role in plan.roles.values() if role.group == "experts"]
    uneven = sorted({n for role in experts for n in role.student_shape[-2:] if n % 8})
    if uneven:
        down = uneven[0] // 8 * 8
        found.append(
            f"Experts: a width of {uneven[0]} is no multiple of 8 (bfloat16; 4 in float32), so they run one by one, "
            f"slower; the nearest widths at which they run at once are {down} and {down + 8}."
        )
    if noise := training_noise(plan.teacher_config.to_dict()):
        fields = ", ".join(f"{key}={value:g}" for key, value in noise.items())
        found.append(f"The student trains without the teacher's {fields}; its saved config keeps the teacher's value.")
    return found
