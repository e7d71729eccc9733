"""Tokens per second and memory in the logs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tiny_trainer import samples, trainer_of

from lowrank_clone.training import speed
from lowrank_clone.training.metrics import MetricsFile, read_metrics
from lowrank_clone.training.speed import Speed, memory_gib


def test_evaluations_and_checkpoints_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
    measured, state = Speed(), SimpleNamespace(num_input_tokens_seen=1000)

    def passes(seconds: float, event: str) -> None:
        clock[0] += seconds
        getattr(measured, event)(None, state, None)

    passes(5.0, "on_train_begin")
    passes(7.0, "on_evaluate")  # before the first step
    passes(2.0, "on_step_end")
    passes(2.0, "on_step_end")
    assert measured.figures(1400)["tokens_per_second"] == 400 / 4.0
    passes(9.0, "on_evaluate")
    passes(3.0, "on_save")
    passes(1.0, "on_step_end")
    assert measured.figures(1500)["tokens_per_second"] == 100 / 1.0
    assert set(measured.figures(1500)) == {"memory_gib"}  # no step, no speed


def test_every_line_of_training_has_both_and_the_trainer_s_history_neither(tmp_path: Path) -> None:
    measured, path = Speed(), tmp_path / "metrics.jsonl"
    trainer = trainer_of(
        tmp_path,
        callbacks=[measured, MetricsFile(path, measured)],
        eval_dataset=samples(2),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
    )
    trainer.train()
    lines = read_metrics(path)
    training = [line for line in lines if "lm" in line]
    assert len(training) == 2 and len(lines) == 4
    for line in training:
        assert line["tokens_per_second"] > 0
        assert 0 < line["memory_gib"] < psutil.virtual_memory().total / 2**30
    others = [line for line in [*lines, *trainer.state.log_history] if line not in training]
    assert not any("memory_gib" in line or "tokens_per_second" in line for line in others)
    assert memory_gib() == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.2)
