"""metrics.jsonl: every log of a run as a line of JSON, written and read.

A line that a crash, a full disk or an editor damaged is left out, and said, by everything that reads the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from transformers import TrainerCallback

from .durable import write_whole
from .order import data_hash
from .speed import Speed

_OF_A_CLOCK = ("_runtime", "_per_second")
SPEED_FILE = "speed.jsonl"
LONGEST_LINE = 2**20  # bytes; a line with a thousand taps has 60,000
_log = logging.getLogger("lowrank_clone")


class MetricsFile(TrainerCallback):
    """Append every log as a JSON line to `path`; on resume, drop damaged lines and those of steps to be done again.

    A line tells nothing of a clock, so that a run that was cut off and went on ends with the lines of one that was not.

    Args:
        speed: Its figures go to `speed.jsonl` beside the file, a line for each line of training. They are kept out of
            Trainer's own history too.
    """

    def __init__(self, path: Path, speed: Speed | None = None) -> None:
        self.path, self.speed = path, speed
        self._kept: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mend the file of a run that goes on."""
        self.go_on(state)

    def go_on(self, state: Any) -> None:
        """Mend the file of a run that is at this state."""
        if state.is_world_process_zero and (self.path.exists() or state.global_step > 0):
            self._kept = mend(self.path, state.global_step, [line_of(log, log["step"]) for log in state.log_history])
            if (speeds := self.path.with_name(SPEED_FILE)).exists():
                mend(speeds, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append a line."""
        read = data_hash(state) if "loss" in (logs or {}) else None
        line = line_of({**(logs or {}), **({} if read is None else {"data_hash": read})}, state.global_step)
        if not state.is_world_process_zero or not line or line in self._kept:
            return
        append(self.path, line)
        if self.speed is not None and "tokens" in (logs or {}):
            figures = self.speed.figures((logs or {})["tokens"])
            append(self.path.with_name(SPEED_FILE), json.dumps({"step": state.global_step, **figures}))


def append(path: Path, line: str) -> None:
    """Append a line and wait until it is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def line_of(logs: Mapping[str, Any], step: int) -> str:
    """A log as a line of JSON; empty for the summary of a run, which a clock measured.

    JSON has no infinity and no NaN: a value that is none of its numbers is left out, as is the time of an evaluation.
    """
    if "train_runtime" in logs:
        return ""
    left_out = {key for key, value in logs.items() if _is_odd(value) or key.endswith(_OF_A_CLOCK)} | {"step"}
    numbers = {key: logs[key] for key in sorted(logs) if key not in left_out}
    return json.dumps({"step": step, **numbers}) if numbers else ""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The good lines of a run's `metrics.jsonl`, each with its `step`; none if the file is missing.

    A line is good if it is a JSON object in UTF-8 with a whole `step` of at least 0, finite numbers only, and `tokens`
    beside a training loss `lm`. All others are told of in one warning of the logger `lowrank_clone`. Lines of training
    have the figures of `speed.jsonl` too.
    """
    if not path.exists():
        return []
    place = path.with_name(SPEED_FILE)
    speeds = {line["step"]: line for _, line in _good_lines(place)} if place.exists() else {}
    return [{**speeds.get(line["step"], {}), **line} if "lm" in line else line for _, line in _good_lines(path)]


def mend(path: Path, step: int, logged: Iterable[str] = ()) -> set[str]:
    """Keep the good lines of steps up to `step`, byte for byte, and write again those that the disk lost.

    Args:
        logged: The lines that were logged until then, in order.

    Returns:
        The lines that are in the file now.
    """
    found = [(line["step"], raw) for raw, line in _good_lines(path)] if path.exists() else []
    kept = [(at, raw) for at, raw in found if at <= step]
    have = [json.loads(raw) for _, raw in kept]
    logs = [json.loads(line) for line in logged if line]
    lost = [log for log in logs if not any(log.items() <= line.items() for line in have if line["step"] == log["step"])]
    kept = sorted([*kept, *((log["step"], json.dumps(log).encode()) for log in lost)], key=lambda line: line[0])
    write_whole(path, b"".join(raw + b"\n" for _, raw in kept))
    return {raw.decode() for _, raw in kept}


def _good_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    bad: list[str] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield raw.rstrip(b"\n"), _parse(raw)
            except (ValueError, RecursionError) as error:
                bad.append(f"{number} ({error if type(error) is ValueError else 'no JSON'})")
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        _log.warning("%s: left out damaged line%s %s", path, "s" if len(bad) > 1 else "", shown)


def _parse(raw: bytes) -> dict[str, Any]:
    if len(raw) > LONGEST_LINE:
        raise ValueError(f"{len(raw):,} bytes long")
    line = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    step = line.get("step") if isinstance(line, dict) else None
    if type(step) is not int or step < 0:
        raise ValueError("no step")
    if odd := next((key for key, value in line.items() if type(value) not in (int, float, str)), None):
        raise ValueError(f"no number at {odd!r}"[:80])
    if any(_is_odd(value) for value in line.values()):  # 1e999 is valid JSON
        raise ValueError("an infinite number")
    if "lm" in line and "tokens" not in line:
        raise ValueError("no tokens")
    if any(type(line[key]) is str for key in ("lm", "kl", "clone", "eval_lm", "tokens", "loss") if key in line):
        raise ValueError("text for a number")
    return line


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
