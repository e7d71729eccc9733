"""What figures of lines are put together from: pieces of Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]
# Told apart on white and on black, and by most of those who see few colours; the first one is the student of one run.
COLOURS = ("#2f80d0", "#e0772b", "#2ca36b", "#d14a61", "#8f6fd6", "#b0892f", "#d66fb5", "#1fa3b5", "#8d9a2b", "#9a6b53")
GREY = "#8a8f98"
LEGEND: Spec = {"title": None, "orient": "top", "symbolType": "stroke", "symbolStrokeWidth": 2}
GREY_LEGEND: Spec = {**LEGEND, "encoding": {"symbols": {"update": {"stroke": {"value": GREY}}}}}


def frame_of(title: str, height: int) -> Spec:
    """What every figure begins with: it takes the width of the place that it is put into."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": title,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }


def base(title: str, names: Sequence[str], values: Sequence[Spec], field: str = "run") -> Spec:
    """What all lines have: their data, a colour by run or kind, a legend where there are several."""
    several = len(names) > 1
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    colour: Spec = {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(names), "range": colours},
        "legend": dict(LEGEND) if several else None,
    }
    return {
        **frame_of(title, 260),
        "data": {"values": list(values)},
        "encoding": {"color": colour},
    }


# Drag to move, shift and wheel to zoom, double-click to go back; the wheel alone scrolls the page.
ZOOM: Spec = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.shiftKey]", "clear": "dblclick"},
    "bind": "scales",
}


def tokens_axis(last: float) -> Spec:
    """The horizontal axis of training tokens, from 0 to a little beyond the last one."""
    label = "datum.value == 0 ? '0' : replace(format(datum.value, '.3~s'), 'G', 'B')"
    axis = {"title": "training tokens", "labelExpr": label, "tickCount": 5, "labelOverlap": True}
    last = last or 1
    return {"field": "t", "type": "quantitative", "scale": {"domain": [-0.01 * last, 1.01 * last]}, "axis": axis}


def value_axis(values: Sequence[Spec], *, log: bool = False, zero: bool = False, domain: Sequence[float] = ()) -> Spec:
    """The vertical axis of values, over as much as they take."""
    if log and not domain:
        domain = [min(value["v"] for value in values) / 1.08, max(value["v"] for value in values) * 1.08]
    scale: Spec = {"type": "log"} if log else {"zero": zero}
    scale |= {"domain": [float(f"{end:.4g}") for end in domain], "nice": False} if domain else {}
    label = "abs(datum.value) >= 1e4 ? format(datum.value, '.3~s') : format(datum.value, '.4~r')"
    axis = {"title": None, "labelExpr": label, "tickCount": 6, "labelOverlap": True}
    return {"field": "v", "type": "quantitative", "scale": scale, "axis": axis}


def hover(
    fields: Sequence[str], x: tuple[str, str, str] = ("t", "training tokens", ",.0f"), value: str = "value"
) -> Spec:
    """A point that appears where the pointer is nearest, with its numbers."""
    tips: list[Spec] = [{"field": name, "type": "nominal"} for name in fields]
    tips.append({"field": x[0], "type": "quantitative", "title": x[1], **({"format": x[2]} if x[2] else {})})
    tips.append({"field": "v", "type": "quantitative", "title": value, "format": ".5~g"})
    select = {"type": "point", "nearest": True, "on": "pointermove", "clear": "pointerout"}
    return {
        "mark": {"type": "point", "filled": True, "size": 70, "clip": True},
        "params": [{"name": "hover", "select": select}],
        "encoding": {
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
            "tooltip": tips,
        },
    }


def lonely(values: Sequence[Spec]) -> list[Spec]:
    """A line of one point is nothing: show the point."""
    count: dict[tuple[str, str], int] = {}
    for value in values:
        key = (value["run"], value["kind"])
        count[key] = count.get(key, 0) + 1
    alone = [value for value in values if count[value["run"], value["kind"]] == 1 and value["kind"] == "training"]
    return [{"data": {"values": alone}, "mark": {"type": "point", "filled": True, "size": 32}}] if alone else []


def rules(marks: Sequence[Spec], events: Sequence[Spec]) -> list[Spec]:
    """Horizontal lines with a label at their `level`, and vertical ones at the tokens `t` of events."""
    layers: list[Spec] = []
    if marks:
        off: Spec = {"color": {"value": GREY}, "x": {"value": 0}, "x2": {"value": "width"}}
        y = {"y": {"field": "level", "type": "quantitative"}}
        rule = {"type": "rule", "strokeDash": [6, 4], "clip": True, "strokeWidth": 1.5}
        text = {"type": "text", "align": "right", "baseline": "bottom", "dx": -4, "dy": -3, "clip": True}
        named: Spec = {**off, **y, "x": {"value": "width"}, "text": {"field": "label"}}
        del named["x2"]
        layers += [
            {"data": {"values": list(marks)}, "mark": rule, "encoding": {**off, **y}},
            {"data": {"values": list(marks)}, "mark": text, "encoding": named},
        ]
    if events:
        tips = [{"field": name, "type": "nominal"} for name in ("run", "step", "what", "details")]
        encoding: Spec = {
            "opacity": {"value": 0.8},
            "color": {"value": "#d1495b"},
            "y": {"value": 0},
            "y2": {"value": "height"},
        }
        encoding |= {"x": {"field": "t", "type": "quantitative"}, "tooltip": tips}
        mark = {"type": "rule", "strokeDash": [2, 3], "clip": True, "strokeWidth": 1.5}
        layers.append({"data": {"values": list(events)}, "mark": mark, "encoding": encoding})
    return layers
