"""Loss curves: every run can be drawn, and nothing flattens what matters."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lowrank_clone.report.curves import MOST_POINTS, curves, draw_curves
from lowrank_clone.report.series import short_count

PNG = b"\x89PNG\r\n\x1a\n"


def log(step: int, lm: float, **others: float) -> dict[str, Any]:
    return {"step": step, "tokens": 1000 * step, "lm": lm, "kl": 1.0, "clone": 5.0, **others}


def run(start: float = 4.0, end: float = 3.2, steps: int = 100) -> list[dict[str, Any]]:
    """A run that is validated at its start, twice while it goes, and at its end, off the steps that are logged."""
    trained = [log(s, end + (start - end) * math.exp(-s / 20)) for s in range(10, steps + 1, 10)]
    return [*trained, *({"step": s, "eval_lm": v} for s, v in ((0, start), (33, 3.5), (66, 3.3), (100, 3.25)))]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_student_from_scratch_does_not_flatten_the_curves() -> None:
    axes = curves(run(), {"teacher": 2.94, "student from scratch": 9.8}).axes[0]
    low, high = axes.get_ylim()
    assert 2.5 < low < 2.94 and 4.0 < high < 4.5
    assert "↑ student from scratch 9.80" in labels(axes) and "teacher 2.94" in labels(axes)


def test_a_level_near_the_curves_is_a_line() -> None:
    axes = curves(run(), {"teacher": 2.94, "student before training": 4.1}).axes[0]
    assert axes.get_ylim()[1] > 4.1 and "student before training 4.10" in labels(axes)


def test_a_start_far_off_is_told_and_not_drawn() -> None:
    axes = curves(run(start=30.0, steps=300), {"teacher": 2.94}).axes[0]
    assert axes.get_ylim()[1] < 15 and "↑ validation at the start 30.00" in labels(axes)


def test_validation_lies_at_its_tokens_though_its_steps_are_not_logged() -> None:
    figure = curves(run())
    (held_out,) = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("validation")]
    assert list(held_out.get_xdata()) == pytest.approx([0, 33_000, 66_000, 100_000])
    assert list(held_out.get_ydata()) == [4.0, 3.5, 3.3, 3.25]


def test_axes_have_units() -> None:
    left, right = curves(run()).axes
    assert left.get_ylabel() == "nats/token" and left.get_xlabel() == right.get_xlabel() == "training tokens"
    assert labels(right) == ["T² · KL (nats/token)", "clone (sum of the taps' MSE)"]


def test_a_resumed_run_has_each_step_once() -> None:
    again = [log(10, 9.0), *run(), log(10, 3.7)]
    (train,) = [line for line in curves(again).axes[0].lines if line.get_label() == "training"]
    assert list(train.get_xdata()) == [1000 * s for s in range(10, 101, 10)] and train.get_ydata()[0] == 3.7


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 0, "eval_lm": 4.0}],
        [log(1, 4.0)],
        [log(1, math.nan, kl=math.inf, clone=-1.0), log(2, 4.0)],
        [log(1, math.nan)],
        [log(0, 4.0)],
        [{"step": 1, "tokens": 10, "lm": 3.0}],
        [log(step, 3.0) for step in range(1, 9)],
    ],
    ids=["nothing", "validation only", "one point", "not finite", "nothing finite", "step 0", "baseline", "constant"],
)
@pytest.mark.parametrize("levels", [{}, {"teacher": 3.0, "scratch": math.inf}], ids=["no levels", "levels"])
def test_every_run_can_be_drawn(metrics: list[dict[str, Any]], levels: dict[str, float], tmp_path: Path) -> None:
    draw_curves(metrics, tmp_path / "curves.png", levels)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_a_long_run_is_drawn_by_means() -> None:
    axes = curves([log(step, 3.0 + step % 2) for step in range(1, 50_001)]).axes[0]
    (train,) = axes.lines
    assert len(train.get_xdata()) <= MOST_POINTS and train.get_label() == "training, means of 25 logs"
    assert train.get_ydata()[0] == pytest.approx(3.52)


def test_counts_as_people_say_them() -> None:
    assert [short_count(n) for n in (0, 950, 20_000, 1_500_000, 4e9)] == ["0", "950", "20k", "1.5M", "4B"]


def test_importing_the_library_leaves_matplotlib_as_it_is() -> None:
    code = (
        "import matplotlib, sys; matplotlib.use('svg'); "
        "import lowrank_clone.run.execute, lowrank_clone.inspection.page; "
        "assert matplotlib.get_backend() == 'svg' and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
