"""metrics.jsonl: every log of a run as a line of JSON, written and read.

A line that a crash, a full disk or an editor damaged is left out, and said, by everything that reads the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from transformers import TrainerCallback

from .order import data_hash
from .speed import Speed

LONGEST_LINE = 2**20  # bytes; a line with a thousand taps has 60,000
_log = logging.getLogger("lowrank_clone")


class MetricsFile(TrainerCallback):
    """Append every log as a JSON line to `path`; on resume, drop damaged lines and those of steps to be done again.

    Args:
        speed: Adds its figures to the lines of training. They are kept out of Trainer's own history, in which a run
            that is repeated leaves the same numbers.
    """

    def __init__(self, path: Path, speed: Speed | None = None) -> None:
        self.path, self.speed = path, speed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mend the file of a run that goes on."""
        if self.path.exists() and state.is_world_process_zero:
            mend(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append a line."""
        if state.is_world_process_zero and logs:
            # JSON has no infinity and no NaN; a value that is none of its numbers is left out.
            numbers = {key: value for key, value in logs.items() if not _is_odd(value)}
            if self.speed is not None and "tokens" in logs:
                numbers |= self.speed.figures(logs["tokens"])
            if "loss" in logs and (read := data_hash(state)) is not None:
                numbers["data_hash"] = read
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The good lines of a run's `metrics.jsonl`, each with its `step`; none if the file is missing.

    A line is good if it is a JSON object in UTF-8 with a whole `step` of at least 0, finite numbers only, and `tokens`
    beside a training loss `lm`. All others are told of in one warning of the logger `lowrank_clone`.
    """
    return [line for _, line in _good_lines(path)] if path.exists() else []


def mend(path: Path, step: int) -> None:
    """Keep the good lines of steps up to `step`, byte for byte."""
    kept = [raw for raw, line in _good_lines(path) if line["step"] <= step]
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(b"".join(raw + b"\n" for raw in kept))
    os.replace(part, path)


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
