"""What a run looks like: its loss curves, and the tables, figures and page of an inspection (`diagnostics.py`)."""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

from .diagnostics import Inspection, MaskedLosses, Spectrum, TapError

TEACHER, STUDENT = "#555555", "#1f6fb4"  # of lines and bars, in every figure


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
    _save(figure, path)


@dataclass(frozen=True)
class RunFacts:
    """Where the numbers of an inspection come from. `measured` is a date."""

    run: str
    teacher: str
    checkpoint: str
    trained_tokens: int
    measured: str
    version: str


@dataclass(frozen=True)
class Sheet:
    """A table for the terminal and the page: `note` gives unit and source, the first column names the row."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def error_sheet(errors: Sequence[TapError], tokens: int, model: str = "student") -> Sheet:
    """Relative errors by layer and tap, and the median of each tap."""
    places, layers, values = _grid(errors)
    rows = [
        (str(layer), *(_number(values.get((layer, place))) if (layer, place) in values else "" for place in places))
        for layer in layers
    ]
    medians = [[v for layer in layers if (v := values.get((layer, place))) is not None] for place in places]
    rows.append(("median", *(_number(statistics.median(column)) if column else "n/a" for column in medians)))
    return Sheet(
        f"Relative error of activations, {model}",
        "||s - t||² / ||t||² of each tapped output, no unit: 0 is the teacher's activation, 1 as far off as zeros "
        f"would be. Outputs of writes are compared after their own Z. Source: {tokens:,} validation tokens. "
        "n/a: not observable, or the write has no Z.",
        ("layer", *places),
        tuple(rows),
    )


def rank_sheet(inspection: Inspection) -> Sheet:
    """Effective rank of the residual stream by layer."""
    rows = [
        ("into the first" if r.layer == 0 else str(r.layer - 1), f"{r.teacher:.1f}", f"{r.student:.1f}",
         f"{r.student / r.teacher:.0%}" if r.teacher else "n/a")
        for r in inspection.ranks
    ]  # fmt: skip
    return Sheet(
        "Effective rank of the residual stream after each layer",
        "Unit: dimensions, at most the width and one less than the number of tokens. exp(entropy of the covariance's "
        "normalised eigenvalues), rows centred and normalised (RED, arXiv 2605.29327). "
        f"Source: {inspection.tokens:,} validation tokens.",
        ("layer", f"teacher (of {inspection.teacher_width})", f"student (of {inspection.student_width})", "share"),
        tuple(rows),
    )


def spectra_sheet(spectra: Iterable[Spectrum]) -> Sheet:
    """Singular values by kind of factor: the extremes over layers, and medians."""
    rows = []
    for label, group in _by_kind(spectra).items():
        ranks = statistics.median(s.effective_rank for s in group)
        rows.append(
            (
                label,
                str(len(group)),
                _number(max(s.values[0] for s in group)),
                _number(min(s.values[-1] for s in group)),
                f"{ranks:.1f} of {len(group[0].values)}",
                _number(statistics.median(s.condition for s in group)),
                _number(max(s.condition for s in group)),
            )
        )
    headings = ("largest", "smallest", "median effective rank", "median condition", "worst condition")
    return Sheet("Singular values of the factors", _SPECTRA_NOTE, ("factor of", "factors", *headings), tuple(rows))


def factor_sheet(spectra: Iterable[Spectrum]) -> Sheet:
    """Singular values of every single factor."""
    rows = [
        (
            s.factor,
            _number(s.values[0]),
            _number(s.values[-1]),
            f"{s.effective_rank:.1f} of {len(s.values)}",
            _number(s.condition),
        )
        for s in spectra
    ]
    headings = ("factor", "largest", "smallest", "effective rank", "condition")
    return Sheet("Singular values, factor by factor", _SPECTRA_NOTE, headings, tuple(rows))


_SPECTRA_NOTE = (
    "Unit: student channels per teacher channel, since Z maps one to the other; condition (largest / smallest) has "
    "none; effective rank is exp(entropy of the normalised squares), in dimensions. Source: the "
    "checkpoint's factors. Where a matrix is trained itself (dense, core), it is that matrix."
)


def masking_sheet(inspection: Inspection) -> Sheet:
    """Losses of the masking test."""
    test = inspection.masking
    title = "Neuron masking"
    if test is None:
        note = "Not observable: no FFN write of this model shows its inputs (its experts are raw tensors)."
        return Sheet(title, note, ("model",), ())
    rows = []
    for name, losses in (("teacher", test.teacher), ("student", test.student)):
        top, random = changes(losses)
        spread = f"{statistics.fmean(random):+.4f} ({min(random):+.4f} … {max(random):+.4f})" if random else "n/a"
        rows.append((name, f"{losses.plain:.4f}", f"{top:+.4f}", spread))
    layer_of = {error.tap.name: error.tap.layer for error in inspection.errors}
    spread_over = Counter(layer_of[name] for name, _ in test.neurons)
    where = ", ".join(f"{layer} ({count})" for layer, count in sorted(spread_over.items()))
    count = len(test.neurons)
    return Sheet(
        title,
        f"Unit: nats per token of next-token loss. The {count} of {test.candidates:,} FFN neurons with the largest "
        "mean |activation| in the teacher, ranked over all layers together, are zeroed in both models; random: other "
        f"neurons, as many in each layer, {len(test.student.random)} draws: mean (least … most). Layer (neurons): "
        f"{where}. Source: {test.tokens:,} predicted validation tokens, on which the neurons were ranked too "
        "(LRC, arXiv 2505.12781).",
        ("model", "loss", f"change, top {count} zeroed", f"change, random {count} zeroed"),
        tuple(rows),
    )


def changes(losses: MaskedLosses) -> tuple[float, list[float]]:
    """How much the loss rises without the top neurons, and without each set of random ones."""
    return losses.top - losses.plain, [loss - losses.plain for loss in losses.random]


def draw_errors(errors: Mapping[str, Sequence[TapError]], path: Path) -> None:
    """A heatmap of relative errors, layer by tap, for each of these students, in one colour scale."""
    grids = {name: _grid(of) for name, of in errors.items()}
    known = [v for _, _, values in grids.values() for v in values.values() if v and math.isfinite(v)]
    least = min(known, default=1.0)
    norm = LogNorm(least, max([*known, least * 1.01]))
    tallest = max(len(layers) for _, layers, _ in grids.values())
    widest = max(len(places) for places, _, _ in grids.values())
    size = (1.2 + len(grids) * (1.0 + 0.65 * widest), 2.0 + 0.28 * tallest)
    figure, axes = plt.subplots(1, len(grids), figsize=size, layout="constrained", squeeze=False)
    for panel, (name, (places, layers, values)) in zip(axes[0], grids.items(), strict=True):
        cells = [[values.get((layer, place)) for place in places] for layer in layers]
        numbers = [[math.nan if v is None else v for v in row] for row in cells]
        colours = plt.get_cmap("viridis").with_extremes(bad="#dddddd")
        image = panel.imshow(numbers, norm=norm, aspect="auto", cmap=colours)
        for y, row in enumerate(numbers):
            for x, value in enumerate(row):
                text = "n/a" if math.isnan(value) else _number(value)
                dark = not math.isnan(value) and norm(max(value, least)) < 0.6
                panel.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        panel.set_xticks(range(len(places)), places, rotation=35, ha="right")
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        panel.set(ylabel="layer", title=name)
    figure.colorbar(image, ax=axes[0, -1], label="||s − t||² / ||t||² (no unit, logarithmic)")
    figure.suptitle("Relative error of activations")
    _save(figure, path)


def draw_ranks(inspection: Inspection, path: Path) -> None:
    """Effective rank of the residual stream along the layers."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
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
    _save(figure, path)


def draw_spectra(spectra: Iterable[Spectrum], path: Path) -> None:
    """Singular values of every factor, one panel for each kind, coloured by layer."""
    kinds = _by_kind(spectra)
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    size = (3.2 * columns, 2.6 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    last = max((s.layer or 0 for group in kinds.values() for s in group), default=0)
    colours = plt.get_cmap("viridis")
    for panel, (label, group) in zip(axes.flat, kinds.items(), strict=False):
        for spectrum in group:
            # As shares of the number of values, so that factors of unlike shapes are comparable; 0 has no logarithm.
            y = [value if value > 0 else math.nan for value in spectrum.values]
            x = [(i + 1) / len(y) for i in range(len(y))]
            colour = STUDENT if spectrum.layer is None else colours(spectrum.layer / max(last, 1))
            panel.plot(x, y, color=colour, linewidth=0.9)
        panel.set(yscale="log", title=label)
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(kinds) :]:
        panel.axis("off")
    figure.supxlabel("index of the singular value / number of singular values")
    figure.supylabel("singular value of Z")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, max(last, 1)), colours)
    figure.colorbar(scale, ax=axes, label="layer", shrink=0.8)
    _save(figure, path)


def draw_masking(inspection: Inspection, path: Path) -> None:
    """What zeroing neurons does to the loss of both models. Needs an inspection with a masking test."""
    test = inspection.masking
    assert test is not None
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
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
    _save(figure, path)


def sheets(inspection: Inspection) -> list[Sheet]:
    """The tables of an inspection, in the order of the page."""
    start = inspection.start_errors
    return [
        error_sheet(inspection.errors, inspection.tokens),
        *([error_sheet(start, inspection.tokens, "student before training")] if start else []),
        rank_sheet(inspection),
        spectra_sheet(inspection.spectra),
        masking_sheet(inspection),
    ]


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


def write_page(inspection: Inspection, facts: RunFacts, figures: Mapping[str, Path], path: Path) -> None:
    """One HTML page that needs nothing beside it: tables, and figures as inline PNGs."""
    errors, *start, ranks, spectra, masking = sheets(inspection)
    medians = [error.error for error in inspection.errors if error.error is not None]
    head = {
        "run": facts.run,
        "teacher": f"{facts.teacher}, {inspection.teacher_width} channels",
        "student": f"{inspection.student_width} channels, {facts.checkpoint}, {facts.trained_tokens:,} training tokens",
        "median relative error": f"{_number(statistics.median(medians))} over {len(medians)} taps"
        if medians
        else "n/a",
        "measured": f"{facts.measured}, on {inspection.tokens:,} validation tokens, lowrank-clone {facts.version}",
    }
    facts_html = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in head.items())
    by_layer = _fold("Table", _table(errors)) + "".join(_fold("Before training", _table(sheet)) for sheet in start)
    singles = _fold("Every factor", _table(factor_sheet(inspection.spectra)))
    curves_note = f"Source: metrics.jsonl of the run, {facts.trained_tokens:,} training tokens; units on the axes."
    sections = [
        ("Loss curves", curves_note, _image(figures.get("curves"), "Loss against training tokens")),
        (errors.title, errors.note, _image(figures["relative_error"], errors.title) + by_layer),
        (ranks.title, ranks.note, _image(figures["effective_rank"], ranks.title) + _fold("Table", _table(ranks))),
        (spectra.title, spectra.note, _table(spectra) + _image(figures["factors"], spectra.title) + singles),
        (masking.title, masking.note, _table(masking) + _image(figures.get("masking"), masking.title)),
    ]  # fmt: skip
    body = "".join(
        f"<section><h2>{escape(title)}</h2><p class=note>{escape(note)}</p>{content}</section>"
        for title, note, content in sections
    )
    title = escape(f"Inspection of {facts.run}")
    path.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><dl>{facts_html}</dl>{body}</body></html>\n",
        encoding="utf-8",
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem } dt { color: #666 } dd { margin: 0 }
.note { color: #555; font-size: .9rem } img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee } th { border-bottom: 2px solid #999 }
th:first-child, td:first-child { text-align: left } summary { cursor: pointer; color: #1f6fb4 }
"""  # noqa: E501


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in sheet.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>" if sheet.rows else ""


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _image(path: Path | None, alt: str) -> str:
    if path is None:
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _grid(errors: Sequence[TapError]) -> tuple[list[str], list[int], dict[tuple[int, str], float | None]]:
    """Columns (places in a layer, as they first appear), rows (layers) and values of a table of errors."""
    short = _shorten(error.place for error in errors)
    layers = sorted({error.tap.layer for error in errors})
    values = {(error.tap.layer, short[error.place]): error.error for error in errors}
    return list(short.values()), layers, values


def _shorten(places: Iterable[str]) -> dict[str, str]:
    """Each place's last name, as far as no other place ends in it: `mlp.up_proj` is `up_proj`."""
    distinct = list(dict.fromkeys(places))
    last = {place: place.rpartition(".")[2] for place in distinct}
    counts = Counter(last.values())
    return {place: name if counts[name] == 1 and not name.isdigit() else place for place, name in last.items()}


def _by_kind(spectra: Iterable[Spectrum]) -> dict[str, list[Spectrum]]:
    kinds: dict[str, list[Spectrum]] = {}
    spectra = list(spectra)
    short = _shorten(spectrum.place for spectrum in spectra)
    for spectrum in spectra:
        place = short[spectrum.place]
        label = place if spectrum.is_projection else f"{place} (the matrix itself)"
        kinds.setdefault(label, []).append(spectrum)
    return kinds


def _number(value: float | None) -> str:
    """Three significant digits, over many orders of magnitude."""
    if value is None:
        return "n/a"
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.001 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"
    return f"{value:.2e}"


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
