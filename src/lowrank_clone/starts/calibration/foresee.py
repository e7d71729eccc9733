"""Whether a calibration will work, known before any weight is read: tried on a tiny random model of the same layout."""

from __future__ import annotations

import torch

from ...plan.roles import Plan
from ...plan.tiny import VOCAB, tried_tiny_model
from .blockwise import can_run_blockwise


def can_calibrate(plan: Plan) -> str | None:
    """Why the plan's teacher can't be calibrated, or None where nothing is known against it.

    A layout of which no tiny model can be made shows it when the teacher is loaded.
    """
    model = tried_tiny_model(plan.teacher_config, noise=0.2)  # enough for blocks to depend on each other
    if model is None:
        return None
    ids = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    return can_run_blockwise(model, ids)
