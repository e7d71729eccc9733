"""The random start of LRC (arXiv 2505.12781): normal factors; norms as their family starts them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan.roles import Plan
from .registry import StartInputs


def random_start(plan: Plan, std: float = 0.02, seed: int = 0) -> dict[str, Tensor]:
    """Normal factors `Z ~ N(0, std^2)` (LRC, arXiv 2505.12781, section 3.1).

        clone = CloneModel(teacher, 384, start=random_start(make_plan(teacher.config, 384), std=0.02, seed=1))

    Drawn on the CPU, so that one seed gives one start on every device.

    Returns:
        Factors [d_T, d_S] of all reads and writes by the student's parameter name, float32 on the CPU. Vectors are left
        out, so they start as their family starts them.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (plan.teacher_width, plan.student_width)
    return {
        role.name: torch.empty(shape).normal_(std=std, generator=generator) for role in plan.of_kind("read", "write")
    }


def start(inputs: StartInputs) -> dict[str, Tensor]:
    """`method.init: random`."""
    return random_start(inputs.plan, inputs.factor_std, inputs.seed)
