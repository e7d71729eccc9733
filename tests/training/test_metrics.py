"""metrics.jsonl: good lines survive whatever happens to the others."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lowrank_clone.training.metrics import LONGEST_LINE, MetricsFile, mend, read_metrics

GOOD = [{"step": 1, "lm": 3.5, "tokens": 64}, {"step": 2, "eval_lm": 3.25}, {"step": 3, "lm": 3.0, "tokens": 192}]
DAMAGES: dict[str, bytes] = {
    "cut": b'{"step": 2, "lm": 3.',
    "garbage": b"garbage",
    "no UTF-8": b'{"step": 2, "lm\xff": 3.0}',
    "zeros": b"\0" * 500,
    "no step": b'{"lm": 3.0, "tokens": 5}',
    "a step of text": b'{"step": "2"}',
    "a step below 0": b'{"step": -1}',
    "a step that is true": b'{"step": true}',
    "a step with a fraction": b'{"step": 2.5}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "NaN": b'{"step": 2, "lm": NaN, "tokens": 5}',
    "infinity": b'{"step": 2, "eval_lm": -Infinity}',
    "too large": b'{"step": 2, "eval_lm": 1e999}',
    "text for a number": b'{"step": 2, "eval_lm": "3"}',
    "null for a number": b'{"step": 2, "eval_lm": null}',
    "nested": b'{"step": 2, "eval_lm": {"a": 1}}',
    "deep": b"[" * 200_000,
    "huge": b'{"step": 2, "x": "' + b"a" * LONGEST_LINE + b'"}',
    "no tokens": b'{"step": 2, "lm": 3.0}',
    "empty": b"",
    "two in one line": b'{"step": 2}{"step": 3}',
    "a carriage return": b'{"step": 2\r\r',
}


def damaged(path: Path, damage: bytes) -> Path:
    lines = [json.dumps(line).encode() for line in GOOD]
    path.write_bytes(b"\n".join([*lines[:2], damage, lines[2]]) + b"\n")
    return path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_is_left_out_and_said_once(damage: bytes, tmp_path: Path, caplog) -> None:
    path = damaged(tmp_path / "metrics.jsonl", damage)
    assert read_metrics(path) == GOOD
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{path}: left out damaged line 3 (" in record.getMessage() and "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_mending_keeps_the_good_lines_up_to_a_step(damage: bytes, tmp_path: Path, caplog) -> None:
    path = damaged(tmp_path / "metrics.jsonl", damage)
    mend(path, 2)
    caplog.clear()
    assert read_metrics(path) == GOOD[:2] and not caplog.records


def test_a_last_line_that_was_cut_off_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lm"')
    callback, state = MetricsFile(path), TrainerState(global_step=2, is_world_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    callback.on_train_begin(arguments, state, TrainerControl())
    callback.on_log(arguments, state, TrainerControl(), logs={"eval_lm": 2.0, "grad_norm": math.nan})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "eval_lm": 2.0}]


def test_many_damaged_lines_are_one_warning_and_a_missing_file_is_none(tmp_path: Path, caplog) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("x\n" * 40)
    assert read_metrics(path) == [] and len(caplog.records) == 1
    assert "lines 1 (no JSON), 2 (no JSON)" in caplog.text and "and 35 more" in caplog.text
    assert read_metrics(tmp_path / "none") == []
