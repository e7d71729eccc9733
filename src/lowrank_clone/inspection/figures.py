"""Figures of an inspection."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from ..report.curves import draw_curves
from ..report.style import LAYERS, STUDENT, TEACHER, new_figure, save_figure
from .activations import TapError
from .inspect import Inspection
from .sheets import by_kind, changes, error_grid, format_number
from .spectra import Spectrum


def draw_errors(errors: Mapping[str, Sequence[TapError]], path: Path) -> None:
    """A heatmap of relative errors, layer by tap, for each of these students, in one colour scale."""
    grids = {name: error_grid(of) for name, of in errors.items()}
    known = [v for _, _, values in grids.values() for v in values.values() if v and math.isfinite(v)]
    least = min(known, default=1.0)
    norm = LogNorm(least, max([*known, least * 1.01]))
    tallest = max(len(layers) for _, layers, _ in grids.values())
    widest = max(len(places) for places, _, _ in grids.values())
    figure = new_figure(1.2 + len(grids) * (1.0 + 0.65 * widest), 2.0 + 0.28 * tallest)
    axes = figure.subplots(1, len(grids), squeeze=False)
    for panel, (name, (places, layers, values)) in zip(axes[0], grids.items(), strict=True):
        cells = [[values.get((layer, place)) for place in places] for layer in layers]
        numbers = [[math.nan if v is None else v for v in row] for row in cells]
        colours = LAYERS.with_extremes(bad="#dddddd")
        image = panel.imshow(numbers, norm=norm, aspect="auto", cmap=colours)
        for y, row in enumerate(numbers):
            for x, value in enumerate(row):
                text = "n/a" if math.isnan(value) else format_number(value)
                dark = not math.isnan(value) and norm(max(value, least)) < 0.6
                panel.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        panel.set_xticks(range(len(places)), places, rotation=35, ha="right")
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        panel.set(ylabel="layer", title=name)
    figure.colorbar(image, ax=axes[0, -1], label="||s − t||² / ||t||² (no unit, logarithmic)")
    figure.suptitle("Relative error of activations")
    save_figure(figure, path)


def draw_ranks(inspection: Inspection, path: Path) -> None:
    """Effective rank of the residual stream along the layers."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    x = [rank.layer for rank in inspection.ranks]
    lines = (
        ("teacher", TEACHER, inspection.teacher_width, [rank.teacher for rank in inspection.ranks]),
        ("student", STUDENT, inspection.student_width, [rank.student for rank in inspection.ranks]),
    )
    for name, colour, width, y in lines:
        axes.plot(x, y, marker="o", markersize=4, color=colour, label=f"{name} (width {width})")
    axes.set(
        xlabel="layers passed (0: into the first layer)",
        ylabel="effective rank (dimensions)",
        title="Effective rank of the residual stream",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_spectra(spectra: Iterable[Spectrum], path: Path) -> None:
    """Singular values of every factor, one panel for each kind, coloured by layer."""
    kinds = by_kind(spectra)
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = new_figure(3.2 * columns, 2.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    last = max((s.layer or 0 for group in kinds.values() for s in group), default=0)
    for panel, (label, group) in zip(axes.flat, kinds.items(), strict=False):
        for spectrum in group:
            # As shares of the number of values, so that factors of unlike shapes are comparable; 0 has no logarithm.
            y = [value if value > 0 else math.nan for value in spectrum.values]
            x = [(i + 1) / len(y) for i in range(len(y))]
            colour = STUDENT if spectrum.layer is None else LAYERS(spectrum.layer / max(last, 1))
            panel.plot(x, y, color=colour, linewidth=0.9)
        panel.set(yscale="log", title=label)
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(kinds) :]:
        panel.axis("off")
    figure.supxlabel("index of the singular value / number of singular values")
    figure.supylabel("singular value of Z")
    scale = ScalarMappable(Normalize(0, max(last, 1)), LAYERS)
    figure.colorbar(scale, ax=axes, label="layer", shrink=0.8)
    save_figure(figure, path)


def draw_masking(inspection: Inspection, path: Path) -> None:
    """What zeroing neurons does to the loss of both models. Needs an inspection with a masking test."""
    test = inspection.masking
    assert test is not None
    figure = new_figure(6.5, 4)
    axes = figure.subplots()
    for i, (name, colour, losses) in enumerate(
        (("teacher", TEACHER, test.teacher), ("student", STUDENT, test.student))
    ):
        top, random = changes(losses)
        mean = statistics.fmean(random) if random else 0.0
        bars = axes.bar([i, 3 + i], [top, mean], color=colour, label=name)
        axes.bar_label(bars, labels=[f"{top:+.3f}", f"{mean:+.4f}"], padding=3, fontsize=9)
        axes.scatter([3 + i] * len(random), random, color="black", s=12, zorder=3, label="single draws" if i else None)
    axes.axhline(0, color="black", linewidth=0.8)
    count = len(test.neurons)
    axes.set_xticks([0.5, 3.5], [f"{count} most active", f"{count} random, same layers"])
    axes.set(ylabel="change of loss (nats per token)", title="Zeroing the same FFN neurons in both models")
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_inspection(inspection: Inspection, metrics: list[dict[str, Any]], folder: Path) -> dict[str, Path]:
    """Draw every figure into `folder`; returns what was drawn, by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        name: folder / f"{name}.png" for name in ("curves", "relative_error", "effective_rank", "factors", "masking")
    }
    students = {"student": inspection.errors}
    if inspection.start_errors:
        students = {"before training": inspection.start_errors, "trained": inspection.errors}
    draw_errors(students, drawn["relative_error"])
    draw_ranks(inspection, drawn["effective_rank"])
    draw_spectra(inspection.spectra, drawn["factors"])
    if inspection.masking is not None:
        draw_masking(inspection, drawn["masking"])
    if metrics:
        draw_curves(metrics, drawn["curves"])
    kept = {"curves": bool(metrics), "masking": inspection.masking is not None}
    return {name: path for name, path in drawn.items() if kept.get(name, True)}
