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

from .series import late, loss_range, points, short_count, thinned
from .style import STUDENT, TEACHER, new_figure, save_figure

MOST_POINTS = 2000  # of a line; a figure has no room for more


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
        tokens, values = points(metrics, key)
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
    train, held_out = points(metrics, "lm"), points(metrics, "eval_lm")
    _line(axes, *train, "training", color=STUDENT, alpha=0.45)
    if len(held_out[0]):
        axes.plot(*held_out, marker="o", markersize=4, color=STUDENT, label=f"validation, last {held_out[1][-1]:.2f}")
    marks = {label: level for label, level in levels.items() if math.isfinite(level)}
    low, high = loss_range(train[1], held_out[1], late(*train), late(*held_out), marks)
    for (label, level), style in zip(marks.items(), ("--", ":", "-.", (0, (5, 1))) * len(marks), strict=False):
        if level <= high:
            axes.axhline(level, label=f"{label} {level:.2f}", color=TEACHER, linestyle=style)
        else:
            axes.plot([], [], " ", label=f"↑ {label} {level:.2f}")
    if len(held_out[1]) and held_out[1][0] > high:
        axes.plot([], [], " ", label=f"↑ validation at the start {held_out[1][0]:.2f}")
    axes.set(xlabel="training tokens", ylabel="nats/token", title="Language-model loss", ylim=(low, high))


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, **style: Any) -> None:
    """A line of at most `MOST_POINTS` points, each the mean of as many neighbours as that takes."""
    if not len(x):
        return
    x, y, every = thinned(x, y, MOST_POINTS)
    label = f"{label}, means of {every:,} logs" if every > 1 else label
    axes.plot(x, y, label=label, marker="." if len(x) == 1 else None, **style)
