"""Any torch optimiser over the factors: pull and clip before its step, push after it; and Muon for the matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from ..factors.factors import Factors


class MuonAdamW(Optimizer):
    """torch's Muon for parameters with two axes, torch's AdamW for all others, as one optimiser.

    Adam moves every element by about the learning rate, so its first steps are sign matrices, whose largest singular
    value is up to sqrt(rows x columns) learning rates. Along a teacher's massive activations that throws a calibrated
    start far off within one step. A Muon step has the same size in every direction: 0.2 sqrt(max(rows, columns))
    learning rates, which gives it the root mean square of an AdamW step, so that rates carry over between the two.
    Source: Muon is Scalable for LLM Training (arXiv 2502.16982, section 2.2).

    Args:
        params: Parameters or groups of them, as for any torch optimiser.
        momentum: Of Muon, with Nesterov's look-ahead.
        betas, eps: Of AdamW.
        weight_decay: Of both, decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both. The inner optimisers hold nothing: their state is this one's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shared = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            inner: list[Optimizer] = []
            if matrices := [p for p in group["params"] if p.ndim == 2]:
                inner.append(
                    torch.optim.Muon(matrices, momentum=group["momentum"], adjust_lr_fn="match_rms_adamw", **shared)
                )
            if others := [p for p in group["params"] if p.ndim != 2]:
                inner.append(torch.optim.AdamW(others, betas=group["betas"], eps=group["eps"], **shared))
            for optimizer in inner:
                optimizer.state = self.state
                optimizer.step()
        return loss


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
