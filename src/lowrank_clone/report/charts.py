"""The figures of a report as Vega-Lite specifications (https://vega.github.io/vega-lite/), for the page and for files.

Texts of users (names of runs, of parameters) are data, titles and domains in them, never parts of an expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .heat import heat_maps, tap_medians
from .lines import GREY, GREY_LEGEND, ZOOM, Spec, base, hover, lonely, rules, tokens_axis, value_axis
from .series import late, loss_range, points, thinned, tokens_at
from .view import RunView

POINTS = 1200  # of all runs' lines in one figure; a page has no room for more
_PLAIN = {
    "tokens_per_second": (
        "Throughput",
        "Training tokens per second of all processes, evaluations and saving left out. Source: metrics.jsonl.",
    ),
    "memory_gib": (
        "Memory",
        "GiB: the most that tensors took on the device so far; without a CUDA device, what the process took. Source: "
        "metrics.jsonl, first process.",
    ),
    "learning_rate": ("Learning rate", "Of the first group of parameters."),
    "grad_norm": ("Gradient norm", "Of the factors, before clipping."),
}
_FROM_ZERO = ("tokens_per_second", "memory_gib", "learning_rate")
_DOTS: Spec = {
    "transform": [{"filter": "datum.kind == 'validation'"}],
    "mark": {"type": "point", "filled": True, "size": 32, "clip": True},
}


@dataclass(frozen=True)
class Chart:
    """One figure: `name` is that of its files, `note` gives unit and source, a wide one is as wide as the page."""

    name: str
    title: str
    note: str
    spec: Spec
    wide: bool = False


def charts(runs: Sequence[RunView]) -> list[Chart]:
    """All figures for which there is something to draw, in the order of the page."""
    drawn: list[Chart | None] = [
        _losses(runs),
        *(
            _curve(runs, key, title, f"{unit} Source: metrics.jsonl.", log=True)
            for key, title, unit in (
                ("kl", "KL to the teacher", "T² times the mean over tokens of KL(teacher ‖ student) at temperature T."),
                ("clone", "Activation losses", "Sum over taps of the mean squared error, as its recipe normalises it."),
                ("loss", "Whole loss", "The weighted sum that is minimised."),
            )
        ),
        *(Chart(*parts, wide=len(runs) == 1) for parts in heat_maps(runs)),
        *(Chart(*parts) for parts in _medians(runs)),
        _ranks(runs),
        *(_curve(runs, key, title, note, log=key == "grad_norm") for key, (title, note) in _PLAIN.items()),
    ]  # fmt: skip
    return [chart for chart in drawn if chart is not None]


def _losses(runs: Sequence[RunView]) -> Chart | None:
    """The language-model loss with every teacher's line, and events."""
    marks = _teachers(runs)
    ranges = []
    for run in runs:
        train, held_out = points(run.metrics, "lm"), points(run.metrics, "eval_lm")
        own = {"teacher": run.losses["teacher"]} if "teacher" in run.losses else {}
        ranges.append(loss_range(train[1], held_out[1], late(*train), late(*held_out), own))
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    domain = [low, high + 0.05 * (high - low)]  # room for the name of a teacher's line
    note = (
        "Nats per token, on the training text and on held-out text; the dashed line is the teacher's on held-out text. "
        "The axis leaves out the first 5 % of the tokens where they lie far above. Source: metrics.jsonl, results.json."
    )
    return _curve(runs, "lm", "Language-model loss", note, domain=domain, marks=marks, events=_events(runs), wide=True)


def _curve(
    runs: Sequence[RunView],
    key: str,
    title: str,
    note: str,
    *,
    log: bool = False,
    domain: Sequence[float] = (),
    marks: Sequence[Spec] = (),
    events: Sequence[Spec] = (),
    wide: bool = False,
) -> Chart | None:
    """One quantity against training tokens, while training and at evaluations, a colour for each run."""
    values, every = [], 1
    most = max(50, POINTS // len(runs))
    for run in runs:
        for kind, name in (("training", key), ("validation", f"eval_{key}")):
            x, y = points(run.metrics, name)
            x, y = (x[y > 0], y[y > 0]) if log else (x, y)
            x, y, of = thinned(x, y, most)
            every = max(every, of)
            values += [
                {"run": run.name, "kind": kind, "t": round(t), "v": float(f"{v:.5g}")}
                for t, v in zip(x, y, strict=True)
            ]
    if not values:
        return None
    note = f"{note} Points are means of up to {every:,} logs." if every > 1 else note
    kinds = {value["kind"] for value in values}
    spec = base(title, [run.name for run in runs], values)
    spec["encoding"] |= {
        "x": tokens_axis(max(value["t"] for value in values)),
        "y": value_axis(values, log=log, zero=key in _FROM_ZERO, domain=domain),
    }
    faint: Spec = {
        "field": "kind",
        "type": "ordinal",
        "scale": {"domain": ["training", "validation"], "range": [0.5 if len(kinds) > 1 else 1, 1]},
        "legend": GREY_LEGEND if len(kinds) > 1 else None,
    }
    spec["layer"] = [
        *rules(marks, events),
        {"mark": {"type": "line", "clip": True, "strokeWidth": 2}, "encoding": {"opacity": faint}, "params": [ZOOM]},
        *([_DOTS] if "validation" in kinds else []),
        *lonely(values),
        hover(["run", "kind"] if len(runs) > 1 else ["kind"]),
    ]
    return Chart(key, title, note, spec, wide)


def _ranks(runs: Sequence[RunView]) -> Chart | None:
    """Effective rank along the layers: every student in its colour, teachers in grey."""
    values: list[Spec] = []
    seen: set[Any] = set()
    for run in runs:
        values += [
            {"run": run.name, "kind": "student", "t": r.layer, "v": float(f"{r.student:.5g}")} for r in run.ranks
        ]
        teacher = tuple(float(f"{r.teacher:.5g}") for r in run.ranks)
        if teacher and teacher not in seen:
            seen.add(teacher)
            values += [{"run": run.name, "kind": "teacher", "t": i, "v": rank} for i, rank in enumerate(teacher)]
    if not values:
        return None
    tokens = sorted({run.rank_tokens for run in runs if run.ranks})
    counts = " or ".join(f"{count:,}" for count in tokens)
    last = max(value["t"] for value in values)
    note = (
        f"Dimensions of the residual stream in use after each layer (0: into the first), on {counts} tokens of "
        "validation text, which is a bound on it: exp of the entropy of the covariance's eigenvalues, rows centred and "
        "at unit length (arXiv 2605.29327). `lrc inspect` measures on more text."
    )
    spec = base("Effective rank of the residual stream", [run.name for run in runs], values)
    spec["encoding"] |= {
        "x": {
            "field": "t",
            "type": "quantitative",
            "scale": {"nice": False},
            "axis": {"title": "layers passed", "values": list(range(0, last + 1, max(1, last // 8))), "format": "d"},
        },
        "y": {"field": "v", "type": "quantitative", "axis": {"title": None}},
        "color": {
            "condition": {"test": "datum.kind == 'teacher'", "value": GREY},
            **spec["encoding"]["color"],
        },
    }
    dashed: Spec = {
        "field": "kind",
        "scale": {"domain": ["student", "teacher"], "range": [[1, 0], [5, 4]]},
        "legend": GREY_LEGEND,
    }
    spec["layer"] = [
        {
            "mark": {"type": "line", "clip": True, "strokeWidth": 2},
            "encoding": {"strokeDash": dashed},
            "params": [ZOOM],
        },
        hover(["run", "kind"], x=("t", "layers passed", ""), value="effective rank"),
    ]
    return Chart("effective_rank", "Effective rank of the residual stream", note, spec)


def _medians(runs: Sequence[RunView]) -> Iterable[tuple[str, str, str, Spec]]:
    medians = tap_medians(runs)
    if not medians:
        return
    places = list(dict.fromkeys(value["kind"] for value in medians))
    for run in runs:
        own = [value for value in medians if value["run"] == run.name]
        if not own:
            continue
        title = f"Relative error by kind of tap{f', {run.name}' if len(runs) > 1 else ''}"
        spec = base(title, places, own, field="kind")
        spec["encoding"] |= {
            "x": tokens_axis(max(value["t"] for value in own)),
            "y": value_axis(medians, log=True),
        }
        spec["layer"] = [
            {"mark": {"type": "line", "clip": True, "strokeWidth": 2, "point": {"size": 28}}, "params": [ZOOM]},
            hover(["kind"]),
        ]
        name = "relative_error_over_time" + (f"_{runs.index(run) + 1}" if len(runs) > 1 else "")
        note = (
            "Median over layers at every evaluation, no unit: 0 is the teacher's activation, 1 as far off as zeros are."
        )
        yield name, title, note, spec


def _teachers(runs: Sequence[RunView]) -> list[Spec]:
    """One line for each level that a teacher has; several runs of one teacher and text share it."""
    levels: dict[float, str] = {}
    for run in runs:
        if "teacher" in run.losses:
            levels.setdefault(round(run.losses["teacher"], 4), run.teacher)
    return [{"level": level, "label": f"{teacher} {level:.3f}"} for level, teacher in levels.items()]


def _events(runs: Sequence[RunView]) -> list[Spec]:
    found = []
    for run in runs:
        rows = [row for row in run.events.rows if row[0].isdecimal()]
        tokens = tokens_at(run.metrics, [int(row[0]) for row in rows])
        found += [
            {"run": run.name, "step": row[0], "what": row[1], "details": row[2], "t": round(float(t))}
            for row, t in zip(rows, tokens, strict=True)
        ]
    return found


def values_of(spec: Mapping[str, Any]) -> list[Spec]:
    """The data of a figure."""
    found: list[Spec] = spec["data"]["values"]
    return found
