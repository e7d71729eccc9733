"""Any torch optimiser over the factors: pull and clip before its step, push after it."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from .factors import Factors


def bind(optimizer: Optimizer, factors: Factors, max_grad_norm: float | None = None) -> Optimizer:
    """Make `optimizer.step()` train the student through its factors, and return the same optimiser.

    Before each step the leaves' gradients are pulled into the factors' and, if asked, clipped to a total norm of
    `max_grad_norm`; after it the student's weights are generated anew and all gradients dropped.

        optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), lr=1e-4), clone.factors, max_grad_norm=1.0)
        clone(input_ids).loss.backward()
        optimizer.step()

    Schedulers, `accelerate` and checkpoints see an ordinary optimiser.
    """

    def before(*_: Any) -> None:
        factors.pull()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(factors.parameters(), max_grad_norm)

    def after(*_: Any) -> None:
        factors.zero_grad()
        factors.push()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
