"""Loss curves of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .style import STUDENT, TEACHER, new_figure, save_figure

MOST_POINTS = 2000  # of a line; a figure has no room for more
# The losses of the first tokens, and the highest ones of noisy training, do not set the range of the axis.
FIRST, QUANTILE = 0.05, 0.95
# What lies above that range stretches it to so many times its height at most.
STRETCH = 2.0


def draw_curves(metrics: Sequence[Mapping[str, Any]], path: Path, levels: Mapping[str, float] | None = None) -> None:
    """Write `curves` as a PNG."""
    save_figure(curves(metrics, levels), path)


def curves(metrics: Sequence[Mapping[str, Any]], levels: Mapping[str, float] | None = None) -> Figure:
    """Loss terms against training tokens: language-model loss left, the other terms right.

    The left axis shows the student's losses after the first 5 % of the tokens and the teacher's level. What lies far
    above, such as a student from scratch, is told in the legend instead of flattening all else.

    Args:
        metrics: Lines of `metrics.jsonl`, in any order. Values that are not finite are left out.
        levels: Validation losses (nats per token) to mark as horizontal lines, by label.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    _draw_loss(left, metrics, levels or {})
    for key, label in (("kl", "T² · KL (nats/token)"), ("clone", "clone (sum of the taps' MSE)")):
        tokens, values = _points(metrics, key)
        _line(right, tokens[values > 0], values[values > 0], label)
    right.set(xlabel="training tokens", ylabel="term of the loss", title="Distillation terms (training)", yscale="log")
    if not right.lines:
        right.text(0.5, 0.5, "no distillation terms", ha="center", va="center", transform=right.transAxes)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short_count(tokens)))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


def _draw_loss(axes: Axes, metrics: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> None:
    train, held_out = _points(metrics, "lm"), _points(metrics, "eval_lm")
    _line(axes, *train, "training", color=STUDENT, alpha=0.45)
    if len(held_out[0]):
        axes.plot(*held_out, marker="o", markersize=4, color=STUDENT, label=f"validation, last {held_out[1][-1]:.2f}")
    marks = {label: level for label, level in levels.items() if math.isfinite(level)}
    low, high = _range(train[1], held_out[1], _late(*train), _late(*held_out), marks)
    for (label, level), style in zip(marks.items(), ("--", ":", "-.", (0, (5, 1))) * len(marks), strict=False):
        if level <= high:
            axes.axhline(level, label=f"{label} {level:.2f}", color=TEACHER, linestyle=style)
        else:
            axes.plot([], [], " ", label=f"↑ {label} {level:.2f}")
    if len(held_out[1]) and held_out[1][0] > high:
        axes.plot([], [], " ", label=f"↑ validation at the start {held_out[1][0]:.2f}")
    axes.set(xlabel="training tokens", ylabel="nats/token", title="Language-model loss", ylim=(low, high))


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and finite values of `key`, by step; a later line of one step (a resumed run) replaces an earlier one.

    Evaluations carry no count of tokens: theirs lies between those of the steps around them.
    """
    logged = {0: 0.0} | {line["step"]: float(line["tokens"]) for line in metrics if "tokens" in line}
    values = {line["step"]: float(line[key]) for line in metrics if isinstance(line.get(key), (int, float))}
    steps = sorted(step for step, value in values.items() if math.isfinite(value))
    known = sorted(logged)
    tokens = np.interp(steps, known, [logged[step] for step in known]) if steps else np.empty(0)
    return np.asarray(tokens), np.asarray([values[step] for step in steps], dtype=float)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, **style: Any) -> None:
    """A line of at most `MOST_POINTS` points, each the mean of as many neighbours as that takes."""
    if not len(x):
        return
    every = -(-len(x) // MOST_POINTS)
    starts = range(0, len(x), every)
    x, y = (np.asarray([part[i : i + every].mean() for i in starts]) for part in (x, y))
    label = f"{label}, means of {every:,} logs" if every > 1 else label
    axes.plot(x, y, label=label, marker="." if len(x) == 1 else None, **style)


def _late(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The values behind the first tokens; all of them if there is one point only."""
    return y[x >= FIRST * x[-1]] if len(x) else y


def _range(
    train: np.ndarray, held_out: np.ndarray, late_train: np.ndarray, late: np.ndarray, marks: Mapping[str, float]
) -> tuple[float, float]:
    """The ends of the axis for these losses and marked levels."""
    shown = [*late, *(level for label, level in marks.items() if label.startswith("teacher"))]
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
