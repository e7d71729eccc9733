"""Tables of an inspection, each with its unit and source."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .activations import TapError
from .inspect import Inspection
from .neurons import MaskedLosses
from .spectra import Spectrum


@dataclass(frozen=True)
class Sheet:
    """A table for the terminal and the page: `note` gives unit and source, the first column names the row."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def error_sheet(errors: Sequence[TapError], tokens: int, model: str = "student") -> Sheet:
    """Relative errors by layer and tap, and the median of each tap."""
    places, layers, values = error_grid(errors)
    rows = [
        (
            str(layer),
            *(format_number(values.get((layer, place))) if (layer, place) in values else "" for place in places),
        )
        for layer in layers
    ]
    medians = [[v for layer in layers if (v := values.get((layer, place))) is not None] for place in places]
    rows.append(("median", *(format_number(statistics.median(column)) if column else "n/a" for column in medians)))
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
    for label, group in by_kind(spectra).items():
        ranks = statistics.median(s.effective_rank for s in group)
        rows.append(
            (
                label,
                str(len(group)),
                format_number(max(s.values[0] for s in group)),
                format_number(min(s.values[-1] for s in group)),
                f"{ranks:.1f} of {len(group[0].values)}",
                format_number(statistics.median(s.condition for s in group)),
                format_number(max(s.condition for s in group)),
            )
        )
    headings = ("largest", "smallest", "median effective rank", "median condition", "worst condition")
    return Sheet("Singular values of the factors", _SPECTRA_NOTE, ("factor of", "factors", *headings), tuple(rows))


def factor_sheet(spectra: Iterable[Spectrum]) -> Sheet:
    """Singular values of every single factor."""
    rows = [
        (
            s.factor,
            format_number(s.values[0]),
            format_number(s.values[-1]),
            f"{s.effective_rank:.1f} of {len(s.values)}",
            format_number(s.condition),
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


def error_grid(errors: Sequence[TapError]) -> tuple[list[str], list[int], dict[tuple[int, str], float | None]]:
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


def by_kind(spectra: Iterable[Spectrum]) -> dict[str, list[Spectrum]]:
    """Spectra by the kind of matrix that they belong to, as tables and figures name it."""
    kinds: dict[str, list[Spectrum]] = {}
    spectra = list(spectra)
    short = _shorten(spectrum.place for spectrum in spectra)
    for spectrum in spectra:
        place = short[spectrum.place]
        label = place if spectrum.is_projection else f"{place} (the matrix itself)"
        kinds.setdefault(label, []).append(spectrum)
    return kinds


def format_number(value: float | None) -> str:
    """Three significant digits, over many orders of magnitude."""
    if value is None:
        return "n/a"
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.001 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"
    return f"{value:.2e}"
