"""Warm-ups that learn something in their first step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def without_idle_step(scheduler: LRScheduler, warmup: int) -> LRScheduler:
    """A schedule of transformers whose warm-up of n steps has rates (k + 1) / (n + 1) of the full one, k = 0 .. n - 1.

    transformers' own warm-ups go from 0 to the full rate at step n, so their first step changes nothing. Here each of
    the n steps is 1 / (n + 1) of the way farther up whatever curve the warm-up follows, and step n has the full rate as
    before. A warm-up that begins above 0 by itself (a least rate) stays as it is, and so does what is no warm-up.
    """
    if warmup == 0 or not isinstance(scheduler, LambdaLR) or any(rate(0) != 0 for rate in scheduler.lr_lambdas):
        return scheduler
    rates: list[Callable[[int], float]] = [partial(_rate, rate, warmup) for rate in scheduler.lr_lambdas]
    return LambdaLR(scheduler.optimizer, rates)


def _rate(rate: Callable[[Any], float], warmup: int, step: int) -> float:
    return rate((step + 1) * warmup / (warmup + 1)) if step < warmup else rate(step)
