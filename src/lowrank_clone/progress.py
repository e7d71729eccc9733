"""Progress of what takes long: a bar with the time left on a terminal, elsewhere a short line now and then.

    with progress(len(blocks), "calibrating", "block") as meter:
        for block in blocks:
            ...
            meter.advance()

Everything goes to stderr, so that what a command prints stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

FIRST_LINE = 2.0  # seconds until the first line says how long the rest will take


class Meter:
    """What is done of a long thing, shown by a bar, by lines, or not at all. Made by `progress`."""

    def __init__(self, bar: tqdm | None, lines: Lines | None) -> None:
        self._bar, self._lines = bar, lines

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown behind them, for instance a speed."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        if self._lines is not None:
            self._lines.advance(count, note)

    def expect(self, total: int) -> None:
        """The whole is estimated anew."""
        if self._bar is not None:
            self._bar.total = total
        if self._lines is not None:
            self._lines.total = total


@contextmanager
def progress(
    total: int,
    label: str,
    unit: str = "step",
    *,
    initial: int = 0,
    shown: bool = True,
    every: float = 30.0,
    stream: TextIO | None = None,
) -> Iterator[Meter]:
    """Show how far something is, how fast it goes and how long it will take, until the context is left.

    Where `stream` is a terminal this is a bar. Elsewhere, as in a log file, it is a line after two seconds, then one
    every `every` seconds, or every tenth of the time that has passed once that is longer, and one at the end. What is
    done within two seconds writes no line.

    Args:
        total: Units of the whole, those of `initial` included.
        label: What is being done, for instance "calibrating".
        unit: What is counted, in the singular.
        initial: Units that were done before, by an earlier run; speed and time left do not count them.
        shown: False shows nothing, as in all processes but the first.
        every: Seconds between lines; 0 writes a line at every call of `advance`.
        stream: Where it is shown, stderr unless given.
    """
    stream = sys.stderr if stream is None else stream
    if not shown:
        yield Meter(None, None)
    elif stream.isatty():
        with tqdm(total=total, desc=label, unit=unit, initial=initial, dynamic_ncols=True, file=stream) as bar:
            yield Meter(bar, None)
    else:
        lines = Lines(total, label, unit, initial, every, stream)
        yield Meter(None, lines)
        lines.close()


def track(items: Iterable[T], total: int, label: str, unit: str = "step", shown: bool = True) -> Iterator[T]:
    """The items one by one, with their progress shown; see `progress`."""
    with progress(total, label, unit, shown=shown) as meter:
        for item in items:
            yield item
            meter.advance()


class Lines:
    """Progress as lines, for streams that are no terminal.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str,
        initial: int,
        every: float,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit, self.initial = total, label, unit, initial
        self._every, self._stream, self._clock = every, stream, clock
        self._done, self._start = initial, clock()
        self._next = min(FIRST_LINE, every)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count, and write a line if one is due."""
        self._done += count
        elapsed = self._clock() - self._start
        if elapsed >= self._next and self._done < self.total:
            self._write(f"{self._state(elapsed)}{note and f', {note}'}")
            self._next = elapsed + min(elapsed, max(self._every, elapsed / 10))

    def close(self) -> None:
        """A last line, unless it all took less time than the first line waits for."""
        elapsed = self._clock() - self._start
        if elapsed >= min(FIRST_LINE, self._every):
            self._write(f"{self._done:,}/{self.total:,} {self.unit}s in {clock_time(elapsed)}")

    def _state(self, elapsed: float) -> str:
        done = self._done - self.initial
        share = f"{self._done:,}/{self.total:,} {self.unit}s ({self._done / self.total:.0%})"
        if done == 0 or elapsed <= 0:
            return share
        left = clock_time(elapsed / done * (self.total - self._done))
        return f"{share}, {speed(done / elapsed, self.unit)}, {left} left"

    def _write(self, text: str) -> None:
        print(f"{self.label}: {text}", file=self._stream, flush=True)


def speed(rate: float, unit: str) -> str:
    """Units a second, or seconds a unit where that is the larger number."""
    return f"{rate:,.1f} {unit}s/s" if rate >= 1 else f"{1 / rate:,.1f} s/{unit}"


def clock_time(seconds: float) -> str:
    """A length of time as `m:ss`, from an hour on as `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:,}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
