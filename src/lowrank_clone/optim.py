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


def refresh(optimizer: Optimizer, factors: Factors) -> None:
    """Let a bound optimiser follow factors that were replaced (`CloneModel.reparameterize`).

    Factors that are still there keep their state, new ones start without; matrices join the group of the matrices. Each
    group is in the factors' own order, as in an optimiser that was made for them, so that states can be loaded.
    """
    named = dict(factors.named_parameters())
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    of_matrices = next(
        (i for i, group in enumerate(optimizer.param_groups) if any(p.ndim > 1 for p in group["params"])), 0
    )
    for index, group in enumerate(optimizer.param_groups):
        known = set().union(*groups)
        group["params"] = [
            p for p in named.values() if id(p) in groups[index] or (id(p) not in known and index == of_matrices)
        ]
    alive = {id(p) for p in named.values()}
    for parameter in [p for p in optimizer.state if id(p) not in alive]:
        del optimizer.state[parameter]
