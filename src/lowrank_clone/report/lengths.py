"""The figure of `lrc data stats`: how long the documents of each source are, and what share of the mix it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from .style import new_figure, save_figure

_COLOURS = colormaps["tab10"]
_LONGEST_NAME = 40  # characters; what is beyond is left out at the front, as paths differ at their ends


def draw_lengths(
    counts: Mapping[str, Sequence[int]], shares: Mapping[str, tuple[float, float | None]], path: Path
) -> None:
    """Write `lengths` as a PNG."""
    save_figure(lengths(counts, shares), path)


def lengths(counts: Mapping[str, Sequence[int]], shares: Mapping[str, tuple[float, float | None]]) -> Figure:
    """Left the share of each source's documents by their length, right its share of one pass, as it is and as asked.

    Args:
        counts: By source, documents by powers of two: `counts[k]` of 2^k to 2^(k+1) - 1 tokens.
        shares: By source, the share of the tokens of one pass, and the share asked for where there is one.
    """
    figure = new_figure(11, max(3.6, 1.6 + 0.45 * len(counts)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_documents(left, counts)
    _draw_shares(right, shares)
    return figure


def _draw_documents(axes: Axes, counts: Mapping[str, Sequence[int]]) -> None:
    for index, (name, numbers) in enumerate(counts.items()):
        share = np.asarray(numbers) / sum(numbers)
        edges = 2.0 ** np.arange(len(numbers) + 1)
        axes.stairs(share, edges, label=_short(name), color=_COLOURS(index % 10), linewidth=1.8)
        axes.stairs(share, edges, fill=True, color=_COLOURS(index % 10), alpha=0.12)
    axes.set(xlabel="tokens of a document", ylabel="share of the source's documents", title="Lengths of documents")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", rotation=45)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_shares(axes: Axes, shares: Mapping[str, tuple[float, float | None]]) -> None:
    places = np.arange(len(shares))
    got = [share for share, _ in shares.values()]
    bars = axes.barh(places, got, color=[_COLOURS(index % 10) for index in range(len(shares))], height=0.6)
    axes.bar_label(bars, labels=[f"{share:.1%}" for share in got], padding=3, fontsize=8)
    marks = [(place, share) for place, (_, share) in zip(places, shares.values(), strict=True) if share is not None]
    if marks:
        axes.plot([share for _, share in marks], [place for place, _ in marks], "k|", markersize=16, label="asked for")
        axes.legend(fontsize=8)
    axes.set_yticks(places, [_short(name) for name in shares], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(got), *(share for _, share in marks), 0.1) * 1.2)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="share of the tokens of one pass", title="The mix")
    axes.grid(alpha=0.3, axis="x")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
