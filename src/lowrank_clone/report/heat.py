"""Relative errors of activations by layer and tap, at every evaluation of a run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .lines import frame_of
from .series import tokens_at
from .view import RunView, Tap

MOST_FRAMES = 40  # evaluations that can be looked at one by one; of more than three runs as many less
KEY = "eval_relative/"


def heat_maps(runs: Sequence[RunView]) -> Iterable[tuple[str, str, str, dict[str, Any]]]:
    """Name, title, note and specification of a heat map for each run that has relative errors, in one colour scale."""
    lines = {run.name: _evaluations(run, len(runs)) for run in runs}
    grids = {run.name: _grid(run, lines[run.name]) for run in runs}
    known = [v for frames in grids.values() for row in frames for v in row["v"] if v]
    if not known:
        return
    low, high = min(known), max(known)
    domain = [low, high] if low < high else [low / 1.1, high * 1.1]
    for index, run in enumerate(runs, 1):
        if not grids[run.name]:
            continue
        several = len(runs) > 1
        title = f"Relative error of activations{f', {run.name}' if several else ''}"
        note = (
            "||s − t||² / ||t||² of every tapped output at each evaluation, over all validation tokens, no unit: 0 is "
            "the teacher's activation, 1 as far off as zeros would be. Outputs of writes are compared after their own "
            "Z. Colours are logarithmic. Source: metrics.jsonl."
        )
        yield (
            f"relative_error{f'_{index}' if several else ''}",
            title,
            note,
            _spec(run, title, grids[run.name], domain, lines[run.name]),
        )


def tap_medians(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """The median over layers of each place at every evaluation, as points of lines."""
    found = []
    for run in runs:
        lines = _evaluations(run, len(runs))
        short = short_places(run.taps)
        tokens = tokens_at(run.metrics, [line["step"] for line in lines])
        for line, t in zip(lines, tokens, strict=True):
            by_place: dict[str, list[float]] = {}
            for tap in run.taps:
                if KEY + tap.name in line:
                    by_place.setdefault(short[tap.place], []).append(line[KEY + tap.name])
            for place, errors in by_place.items():
                if (median := statistics.median(errors)) > 0:
                    found.append({"run": run.name, "kind": place, "t": round(float(t)), "v": float(f"{median:.4g}")})
    return found


def short_places(taps: Iterable[Tap]) -> dict[str, str]:
    """Each place's last name, as far as no other place ends in it: `mlp.up_proj` is `up_proj`."""
    distinct = list(dict.fromkeys(tap.place for tap in taps))
    last = {place: place.rpartition(".")[2] for place in distinct}
    counts = Counter(last.values())
    return {place: name if counts[name] == 1 and not name.isdigit() else place for place, name in last.items()}


def _evaluations(run: RunView, runs: int) -> list[Any]:
    """The evaluations with relative errors, by step; of many the first, the last and some between."""
    by_step = {line["step"]: line for line in run.metrics if any(key.startswith(KEY) for key in line)}
    lines = [by_step[step] for step in sorted(by_step)]
    most = min(MOST_FRAMES, 3 * MOST_FRAMES // runs)
    if len(lines) <= most:
        return lines
    picked = sorted({round(i * (len(lines) - 1) / (most - 1)) for i in range(most)})
    return [lines[i] for i in picked]


def _grid(run: RunView, lines: Sequence[Any]) -> list[dict[str, Any]]:
    """Layer, place, and an error for each evaluation (null where there is none) of every tap."""
    short = short_places(run.taps)
    rows = []
    for tap in run.taps:
        errors = [line.get(KEY + tap.name) for line in lines]
        if any(error is not None for error in errors):
            told = [None if error is None else float(f"{error:.3g}") for error in errors]
            rows.append({"l": tap.layer, "p": short[tap.place], "v": told})
    return rows


def _spec(
    run: RunView, title: str, rows: Sequence[dict[str, Any]], domain: Sequence[float], lines: Sequence[Any]
) -> dict[str, Any]:
    tokens = [f"{round(float(t)):,}" for t in tokens_at(run.metrics, [line["step"] for line in lines])]
    places = list(dict.fromkeys(row["p"] for row in rows))
    layers = len({row["l"] for row in rows})
    height = 40 + layers * (18 if layers <= 32 else 11)
    frame: dict[str, Any] = {"name": "frame", "value": len(lines) - 1}
    if len(lines) > 1:
        frame["bind"] = {"input": "range", "min": 0, "max": len(lines) - 1, "step": 1, "name": "evaluation"}
    return {
        **frame_of(title, height),
        "title": {
            "text": {"expr": "'after ' + tokens[frame] + ' training tokens'"},
            "anchor": "start",
            "fontWeight": "normal",
            "fontSize": 12,
        },
        "params": [frame, {"name": "tokens", "value": tokens}],
        "data": {"values": list(rows)},
        "transform": [
            {"calculate": "datum.v[frame]", "as": "e"},
            {"filter": "isValid(datum.e)"},
            {"calculate": f"max(datum.e, {domain[0]!r})", "as": "shown"},
        ],
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "p",
                "type": "nominal",
                "scale": {"domain": places},
                "axis": {"title": None, "labelAngle": -35},
            },
            "y": {
                "field": "l",
                "type": "ordinal",
                "scale": {"domain": sorted({row["l"] for row in rows})},
                "axis": {"title": "layer", "labelOverlap": True},
            },
            "color": {
                "field": "shown",
                "type": "quantitative",
                "scale": {"type": "log", "domain": list(domain), "scheme": "viridis"},
                "legend": {
                    "title": None,
                    "orient": "right",
                    "gradientLength": {"expr": "min(height, 200)"},
                    "format": "~g",
                },
            },
            "tooltip": [
                {"field": "l", "type": "ordinal", "title": "layer"},
                {"field": "p", "type": "nominal", "title": "output of"},
                {"field": "e", "type": "quantitative", "title": "relative error", "format": ".3~g"},
            ],
        },
    }
