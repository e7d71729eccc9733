"""The report as one HTML page that needs nothing beside it, and its figures as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import Chart, charts
from .view import Grid, RunView
from .words import answer, differences, facts, incomparable, question

GENERATOR = b'<meta name="generator" content="lowrank-clone report">'
"""By which a page is known as one of ours, in its first kilobyte."""
_PARTS = Path(__file__).parent / "page"
_SECTIONS = {
    "losses": ("Losses", ("lm", "kl", "clone", "loss")),
    "activations": ("Activations", ("relative_error", "relative_error_over_time", "effective_rank")),
    "speed": ("Speed and memory", ("tokens_per_second", "memory_gib", "learning_rate", "grad_norm")),
}
_MISSING = {
    "losses": "No losses were logged.",
    "activations": "No relative errors and no ranks: evaluations with training.log_taps log the first, and the end of "
    "`lrc train` measures the second.",
    "speed": "No speeds were logged.",
}


def page(runs: Sequence[RunView], live: int = 0) -> str:
    """The page's text.

    Args:
        live: Seconds after which the page loads itself again; never unless given.
    """
    drawn = charts(runs)
    sections = [
        (key, name, [chart for chart in drawn if chart.name.rstrip("0123456789").rstrip("_") in names])
        for key, (name, names) in _SECTIONS.items()
    ]
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    rest = [
        ("evaluation", "Evaluation"),
        ("samples", "Samples"),
        ("events", "Events"),
        ("plan", "Plan"),
        ("recipe", "Recipe"),
    ]
    environment = Environment(loader=FileSystemLoader(_PARTS), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title=f"{' and '.join(run.name for run in runs)}: report",
        question=question(runs),
        answer=answer(runs),
        warnings=[*incomparable(runs), *notes],
        contents=[("facts", "In figures"), *((key, name) for key, name, _ in sections), *rest],
        facts=facts(runs),
        differences=differences(runs) if len(runs) > 1 else Grid((), ()),
        sections=sections,
        missing=_MISSING,
        scores=score_table(runs),
        runs=runs,
        live=live,
        version=version("lowrank-clone"),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        specs=_json({chart.name: chart.spec for chart in drawn}),
        css=Markup(_part("page.css")),
        js=_script(_part("page.js")),
        library=_library(),
    ) + "\n"  # fmt: skip


def draw_figures(drawn: Iterable[Chart], folder: Path) -> list[Path]:
    """Write each figure as NAME.svg and NAME.png into a folder that exists."""
    written = []
    for chart in drawn:
        svg = vl_convert.vegalite_to_svg(on_paper(chart))
        image, picture = folder / f"{chart.name}.png", folder / f"{chart.name}.svg"
        picture.write_text(svg, encoding="utf-8")
        image.write_bytes(vl_convert.svg_to_png(svg, scale=2))
        written += [picture, image]
    return written


def on_paper(chart: Chart) -> dict[str, Any]:
    """A figure's specification by itself: a title, a width in pixels, and nothing to move."""
    spec = dict(chart.spec)
    several = spec.get("title", {})
    title = {"text": chart.title, "anchor": "start", **({"subtitle": several["text"]} if several else {})}
    layers = [
        {key: value for key, value in layer.items() if key != "params"}
        for layer in spec.get("layer", [])
        if "opacity" not in layer.get("encoding", {}) or "condition" not in layer["encoding"]["opacity"]
    ]
    spec |= {"width": 900 if chart.wide else 560, "title": title, "background": "white"}
    spec["params"] = [{key: value for key, value in param.items() if key != "bind"} for param in spec.get("params", [])]
    return spec | ({"layer": layers} if layers else {})


def score_table(runs: Sequence[RunView]) -> Grid:
    """Tasks by models, the runs' names before the models' where there are several runs."""
    columns: dict[str, None] = {}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        for score in run.scores:
            column = f"{run.name}: {score.model}" if len(runs) > 1 else score.model
            columns[column] = None
            error = f" ± {score.error:.4f}" if score.error is not None else ""
            cells.setdefault((score.task, score.metric), {})[column] = f"{score.value:.4f}{error}"
    rows = tuple((task, metric, *(row.get(column, "–") for column in columns)) for (task, metric), row in cells.items())
    return Grid(("task", "metric", *columns), rows)


def _json(tree: Mapping[str, Any]) -> Markup:
    """JSON that can stand in a script element: no tag can begin in it."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _script(text: str) -> Markup:
    """JavaScript that can stand in a script element: what would end it is in a string or a pattern."""
    return Markup(text.replace("</script", "<\\/script"))


@cache
def _library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return _script(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")
