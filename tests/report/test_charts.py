"""Figures hold the numbers of the runs, and every one is a valid specification that draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from report.runs import metrics, view

from lowrank_clone.report.charts import POINTS, charts, values_of
from lowrank_clone.report.heat import MOST_FRAMES
from lowrank_clone.report.html import draw_figures, on_paper
from lowrank_clone.report.view import MOST_RUNS, RunView, Tap

NAMES = ["lm", "kl", "clone", "loss", "relative_error", "relative_error_over_time", "effective_rank"]
NAMES += ["tokens_per_second", "memory_gib", "learning_rate", "grad_norm"]


def by_name(*runs: RunView) -> dict[str, dict[str, Any]]:
    return {chart.name: chart.spec for chart in charts(runs)}


def test_a_full_run_has_every_figure_and_each_is_drawn_without_a_warning(tmp_path: Path, capfd: Any) -> None:
    drawn = charts([view()])
    assert [chart.name for chart in drawn] == NAMES
    written = draw_figures(drawn, tmp_path)
    assert {path.name for path in written} == {f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")}
    for name in NAMES:
        svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<svg") and "NaN" not in svg and "undefined" not in svg
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "WARN" not in "".join(capfd.readouterr())


def test_losses_are_those_of_the_run_against_its_tokens() -> None:
    values = values_of(by_name(view())["lm"])
    train = [(v["t"], v["v"]) for v in values if v["kind"] == "training"]
    held_out = [(v["t"], v["v"]) for v in values if v["kind"] == "validation"]
    assert train == [(64 * step, pytest.approx(5.0 - 0.1 * step)) for step in range(1, 7)]
    assert held_out == [(0, 5.0), (192, 4.7), (384, 4.4)]


def test_the_teacher_s_line_and_the_events_are_in_the_figure_of_the_loss() -> None:
    layers = by_name(view())["lm"]["layer"]
    rule, text, event = (layer["data"]["values"] for layer in layers[:3])
    assert rule == text == [{"level": 3.0, "label": "Big 3.000"}]
    assert event == [{"run": "a", "step": "3", "what": "spike", "details": "lm 9", "t": 192}]


def test_runs_that_share_a_teacher_and_a_text_share_its_line() -> None:
    one = by_name(view("a"), view("b"))["lm"]["layer"][0]["data"]["values"]
    two = by_name(view("a"), view("b", losses={"teacher": 2.5, "now": 4.0}))["lm"]["layer"][0]["data"]["values"]
    assert [mark["level"] for mark in one] == [3.0] and [mark["level"] for mark in two] == [3.0, 2.5]


def test_the_heat_map_has_every_tap_at_every_evaluation() -> None:
    spec = by_name(view())["relative_error"]
    cells = {(row["l"], row["p"]): row["v"] for row in values_of(spec)}
    expected = {
        (layer, place): [pytest.approx((1 + layer + i) / (step + 1), rel=5e-3) for step in (0, 3, 6)]
        for layer in range(2)
        for i, place in enumerate(("q_proj", "down_proj"))
    }
    assert cells == expected
    frame, tokens = spec["params"]
    assert frame["bind"]["max"] == 2 and frame["value"] == 2 and tokens["value"] == ["0", "192", "384"]
    assert spec["encoding"]["color"]["scale"]["domain"] == [pytest.approx(1 / 7, rel=5e-3), 3.0]


def test_the_last_frame_is_what_is_drawn_on_paper() -> None:
    (heat,) = [chart for chart in charts([view()]) if chart.name == "relative_error"]
    svg = vl_convert.vegalite_to_svg(on_paper(heat))
    assert "after 384 training tokens" in svg
    assert "relative error: 0.429" in svg  # (1 + 1 + 1) / 7, in the cell's description


def test_medians_of_each_kind_of_tap_are_over_layers() -> None:
    values = values_of(by_name(view())["relative_error_over_time"])
    assert {(v["kind"], v["t"]): v["v"] for v in values}["q_proj", 192] == pytest.approx((1 + 2) / 2 / 4, rel=1e-3)


def test_one_evaluation_has_no_slider_and_none_has_no_heat_map() -> None:
    lines = metrics()
    once = view(metrics=lines[:1])
    assert lines[0]["step"] == 0 and "bind" not in by_name(once)["relative_error"]["params"][0]
    without = view(metrics=[{k: v for k, v in line.items() if "relative" not in k} for line in metrics()], taps=())
    assert not [name for name in by_name(without) if name.startswith("relative")]


@pytest.mark.parametrize("runs", [1, 3, MOST_RUNS])
def test_long_runs_of_deep_models_stay_small(runs: int) -> None:
    """1,000 taps, 51 evaluations and 5,000 logs."""
    taps = tuple(Tap(f"model.layers.{i // 10}.mlp.p{i % 10}.weight", i // 10, f"mlp.p{i % 10}") for i in range(1000))
    errors = {f"eval_relative/{tap.name}": 1.23456789e-5 for tap in taps}
    lines: list[dict[str, Any]] = []
    for step in range(5_001):
        lines.append(
            {"step": step, "lm": 3.0, "kl": 1.0, "clone": 1.0, "loss": 4.0, "grad_norm": 1.0, "tokens": 10**6 * step}
        )
        if step % 100 == 0:
            lines.append({"step": step, "eval_lm": 3.0, **errors})
    views = [view(f"run-{i}", metrics=lines, taps=taps) for i in range(runs)]
    drawn = charts(views)
    heat = next(chart for chart in drawn if chart.name.startswith("relative_error"))
    frames = heat.spec["params"][1]["value"]
    assert (
        len(frames) == {1: MOST_FRAMES, 3: MOST_FRAMES, MOST_RUNS: 12}[runs]
        and frames[0] == "0"
        and frames[-1] == "5,000,000,000"
    )
    assert all(len(values_of(chart.spec)) <= 2 * POINTS for chart in drawn if chart.name in ("lm", "kl"))
    assert sum(len(json.dumps(chart.spec)) for chart in drawn) < 4_000_000


def test_a_run_of_one_log_shows_a_point_and_a_run_without_logs_no_figure() -> None:
    one = by_name(view(metrics=[{"step": 1, "lm": 3.0, "tokens": 64}]))
    assert list(one) == ["lm", "effective_rank"]
    assert one["lm"]["layer"][-2]["data"]["values"] == [{"run": "a", "kind": "training", "t": 64, "v": 3.0}]
    assert charts([view(metrics=[], ranks=())]) == []


def test_values_that_are_zero_or_equal_are_drawn() -> None:
    flat = [{"step": s, "lm": 3.0, "kl": 0.0, "grad_norm": 0.0, "tokens": s} for s in (1, 2, 3)]
    flat.append({"step": 3, "eval_lm": 3.0, "eval_relative/model.layers.0.self_attn.q_proj.weight": 0.0})
    flat.append({"step": 2, "eval_relative/model.layers.0.self_attn.q_proj.weight": 0.5})
    for chart in charts([view(metrics=flat, losses={})]):
        svg = vl_convert.vegalite_to_svg(on_paper(chart))
        assert "NaN" not in svg
