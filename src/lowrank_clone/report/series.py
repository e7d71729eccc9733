"""Lines of metrics.jsonl as series of points, and the range that an axis of losses has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The losses of the first tokens, and the highest ones of noisy training, do not set the range of the axis.
FIRST, QUANTILE = 0.05, 0.95
# What lies above that range stretches it to so many times its height at most.
STRETCH = 2.0


def tokens_at(metrics: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> np.ndarray:
    """Training tokens at these optimiser steps.

    Evaluations carry no count of tokens: theirs lies between those of the steps around them.
    """
    logged = {0: 0.0} | {line["step"]: float(line["tokens"]) for line in metrics if "tokens" in line}
    known = sorted(logged)
    return np.asarray(np.interp(steps, known, [logged[step] for step in known])) if len(steps) else np.empty(0)


def points(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and finite values of `key`, by step; a later line of one step (a resumed run) replaces an earlier one."""
    values = {line["step"]: float(line[key]) for line in metrics if isinstance(line.get(key), (int, float))}
    steps = sorted(step for step, value in values.items() if math.isfinite(value))
    return tokens_at(metrics, steps), np.asarray([values[step] for step in steps], dtype=float)


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """At most `most` points, each the mean of as many neighbours as that takes, and how many those are."""
    every = max(1, -(-len(x) // most))
    starts = range(0, len(x), every)
    x, y = (np.asarray([part[i : i + every].mean() for i in starts]) for part in (x, y))
    return x, y, every


def late(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The values behind the first tokens; all of them if there is one point only."""
    return y[x >= FIRST * x[-1]] if len(x) else y


def loss_range(
    train: np.ndarray,
    held_out: np.ndarray,
    late_train: np.ndarray,
    late_held_out: np.ndarray,
    marks: Mapping[str, float],
) -> tuple[float, float]:
    """The ends of the axis for these losses and marked levels; those of a teacher are in it in any case."""
    shown = [*late_held_out, *(level for label, level in marks.items() if label.startswith("teacher"))]
    shown += [*np.quantile(late_train, [1 - QUANTILE, QUANTILE])] if len(late_train) else []
    if not shown:
        return 0.0, 1.0
    low, high = min([*shown, *marks.values(), *held_out]), max(shown)
    reach = low + STRETCH * (high - low)
    high = max([high, *(value for value in (*marks.values(), *held_out, *train[:1]) if value <= reach)])
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def short_count(number: float) -> str:
    """A count as people say it: 1.5M for 1,500,000."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
