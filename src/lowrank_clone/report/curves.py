"""Loss curves of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from .style import save_figure


def draw_curves(metrics: list[dict[str, Any]], path: Path, levels: Mapping[str, float] | None = None) -> None:
    """Loss terms against training tokens as a PNG: language-model loss left, the other terms right.

    Args:
        metrics: Lines of `metrics.jsonl`.
        levels: Validation losses (nats per token) to mark as horizontal lines, by label.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    tokens_at = {line["step"]: line["tokens"] for line in metrics if "tokens" in line} | {0: 0}
    train = [line for line in metrics if "lm" in line]
    held_out = [line for line in metrics if "eval_lm" in line and line["step"] in tokens_at]
    left.plot([line["tokens"] for line in train], [line["lm"] for line in train], label="training", alpha=0.6)
    if held_out:
        x = [tokens_at[line["step"]] for line in held_out]
        left.plot(x, [line["eval_lm"] for line in held_out], marker="o", label="validation")
    for (label, level), style in zip((levels or {}).items(), (":", "--", "-.", (0, (5, 1))), strict=False):
        left.axhline(level, label=f"{label} {level:.2f}", color="gray", linestyle=style)
    left.set(xlabel="training tokens", ylabel="language-model loss (nats per token)", title="Language-model loss")
    left.legend()
    for name, label in (("kl", "T² · KL (nats per token)"), ("clone", "clone (sum over taps)")):
        points = [(line["tokens"], line[name]) for line in train if line.get(name)]
        if points:
            right.plot(*zip(*points, strict=True), label=label)
    right.set(xlabel="training tokens", ylabel="loss term", title="Distillation terms (training)", yscale="log")
    if right.lines:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
