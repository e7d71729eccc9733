"""Progress: a bar on terminals, elsewhere lines that say how far, how fast and how long."""

import io
from itertools import pairwise
from typing import Any

import pytest

from lowrank_clone.progress import Lines, clock_time, progress, speed, track


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(clock: Clock, total: int, **options: Any) -> tuple[Lines, io.StringIO]:
    stream = io.StringIO()
    defaults: dict[str, Any] = {"initial": 0, "every": 30.0, "stream": stream, "clock": clock}
    return Lines(total, "calibrating", "block", **(defaults | options)), stream


def test_lines_say_done_total_rate_and_time_left() -> None:
    clock = Clock()
    lines, stream = lines_of(clock, 40)
    for _ in range(10):
        clock.now += 3
        lines.advance()
    # After 3 s (the first advance past 2 s), then each time as much time has passed again.
    assert stream.getvalue().splitlines() == [
        "calibrating: 1/40 blocks (2%), 3.0 s/block, 1:57 left",
        "calibrating: 2/40 blocks (5%), 3.0 s/block, 1:54 left",
        "calibrating: 4/40 blocks (10%), 3.0 s/block, 1:48 left",
        "calibrating: 8/40 blocks (20%), 3.0 s/block, 1:36 left",
    ]


def test_lines_come_every_half_minute_and_less_often_in_a_long_run() -> None:
    clock = Clock()
    lines, stream = lines_of(clock, 100_000)
    times = []
    for _ in range(36_000):
        clock.now += 1
        before = len(stream.getvalue())
        lines.advance()
        if len(stream.getvalue()) > before:
            times.append(round(clock.now - 100))
    assert times[:8] == [2, 4, 8, 16, 32, 62, 92, 122]
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps[-3:]) > 2_000 and len(times) < 70


def test_what_was_done_before_does_not_count_as_speed() -> None:
    clock = Clock()
    lines, stream = lines_of(clock, 100, initial=90)
    clock.now += 10
    lines.advance(5)
    assert stream.getvalue() == "calibrating: 95/100 blocks (95%), 2.0 s/block, 0:10 left\n"


def test_a_last_line_says_how_long_it_took_and_what_was_quick_says_nothing() -> None:
    clock = Clock()
    lines, stream = lines_of(clock, 2)
    clock.now += 1.5
    lines.advance(2)
    lines.close()
    assert stream.getvalue() == ""
    lines, stream = lines_of(clock, 2)
    clock.now += 75
    lines.advance(2)
    lines.close()
    assert stream.getvalue() == "calibrating: 2/2 blocks in 1:15\n"


def test_every_zero_writes_a_line_at_every_advance() -> None:
    stream = io.StringIO()
    with progress(3, "loading", "shard", every=0, stream=stream) as meter:
        for _ in range(3):
            meter.advance(note="1 GB/s")
    shown = stream.getvalue().splitlines()
    assert [line.split(" (")[0] for line in shown[:2]] == ["loading: 1/3 shards", "loading: 2/3 shards"]
    assert shown[0].endswith("left, 1 GB/s") and shown[2].startswith("loading: 3/3 shards in 0:00")


def test_a_terminal_gets_a_bar() -> None:
    terminal = Terminal()
    with progress(4, "calibrating", "block", stream=terminal) as meter:
        meter.advance(4, "fast")
    shown = terminal.getvalue()
    assert "calibrating" in shown and "4/4" in shown and "fast" in shown and "\r" in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_nothing_is_shown_where_it_is_not_wanted(stream: io.StringIO) -> None:
    with progress(2, "calibrating", every=0, shown=False, stream=stream) as meter:
        meter.advance(2)
    assert stream.getvalue() == ""


def test_an_error_inside_is_not_followed_by_a_line_that_says_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), progress(2, "calibrating", every=0, stream=stream):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_track_yields_every_item() -> None:
    assert list(track(iter("abc"), 3, "reading", "letter")) == ["a", "b", "c"]


def test_times_and_speeds_as_people_write_them() -> None:
    assert [clock_time(s) for s in (0, 59.6, 61, 3600, 90_061)] == ["0:00", "1:00", "1:01", "1:00:00", "25:01:01"]
    assert [speed(r, "step") for r in (0.25, 1, 1234.5)] == ["4.0 s/step", "1.0 steps/s", "1,234.5 steps/s"]
