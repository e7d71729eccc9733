"""The random start of LRC (arXiv 2505.12781): normal factors; norms as their family starts them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..plan.roles import Plan
from ..ranges import Range, check_number
from .registry import FACTOR_STDS, StartInputs

SEEDS = Range(0, 2**32 - 1, whole=True)


def random_start(plan: Plan, std: float = 0.02, seed: int = 0) -> dict[str, Tensor]:
    """Normal factors `Z ~ N(0, std^2)` (LRC, arXiv 2505.12781, section 3.1).

        clone = CloneModel(teacher, 384, start=random_start(make_plan(teacher.config, 384), std=0.02, seed=1))

    Drawn on the CPU, so that one seed gives one start on every device.

    Returns:
        Factors [d_T, d_S] of all reads and writes by the student's parameter name, float32 on the CPU. Vectors are left
        out, so they start as their family starts them.

    Raises:
        InputError: `std` or `seed` is not usable.
    """
    check_number("factor_std", std, FACTOR_STDS)
    check_number("seed", seed, SEEDS)
    generator = torch.Generator().manual_seed(int(seed))
    shape = (plan.teacher_width, plan.student_width)
    return {
        role.name: torch.empty(shape).normal_(std=std, generator=generator) for role in plan.of_kind("read", "write")
    }


def factors_of(start: Mapping[str, Tensor] | str, plan: Plan, std: float, seed: int) -> Mapping[str, Tensor] | None:
    """The factors that a clone begins with, by name: those given, or `random_start`'s; None for `scratch`.

    Raises:
        InputError: `start` is something else.
    """
    if isinstance(start, Mapping):
        return start
    if not isinstance(start, str) or start not in ("random", "scratch"):
        raise InputError(
            f"start: got {start!r}, expected random, scratch, or factors by name as channels_start() and "
            "calibrated_start() return them"
        )
    return random_start(plan, std, seed) if start == "random" else None


def start(inputs: StartInputs) -> dict[str, Tensor]:
    """`method.init: random`."""
    return random_start(inputs.plan, inputs.factor_std, inputs.seed)
