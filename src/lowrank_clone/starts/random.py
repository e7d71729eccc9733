"""The random start of LRC (arXiv 2505.12781): normal factors; norms as their family starts them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan.roles import Plan


def random_start(plan: Plan, std: float = 0.02, seed: int = 0) -> dict[str, Tensor]:
    """Normal factors `Z ~ N(0, std^2)`, [d_T, d_S] each, float32 (LRC, arXiv 2505.12781, section 3.1).

    Drawn on the CPU, so that one seed gives one start on every device. Vectors keep the neutral start of their family.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (plan.teacher_width, plan.student_width)
    return {
        role.name: torch.empty(shape).normal_(std=std, generator=generator) for role in plan.of_kind("read", "write")
    }
