"""The clock limit and several signals, without a process of their own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import trainer_of
from transformers import TrainerCallback

from lowrank_clone.errors import Interrupted
from lowrank_clone.training.interrupt import OUT_OF_TIME, Interruption
from lowrank_clone.training.last_checkpoint import last_checkpoint


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Hours(TrainerCallback):
    """Every step takes an hour."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.now += 3600


def test_the_time_is_over(tmp_path: Path) -> None:
    clock = Clock()
    stop = Interruption(lambda: "it is saved", clock)
    trainer = trainer_of(tmp_path, callbacks=[Hours(clock), stop], max_hours=2.5, save_steps=100)
    with pytest.raises(
        Interrupted, match=r"stopped by training.max_hours \(2.5\) after step 3 of 6; it is saved"
    ) as end:
        trainer.train()
    assert end.value.exit_code == OUT_OF_TIME == 75
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    resumed = trainer_of(tmp_path, max_hours=0)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_a_launcher_s_echo_of_a_signal_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    stop = Interruption(lambda: "saved", clock)
    stop._training = True
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGTERM, None)  # what torchrun sends after a Ctrl-C that the terminal sent to all
    assert (stop.reason, stop.code) == ("Ctrl-C", 130)
    clock.now += 3
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        stop.handle(signal.SIGTERM, None)


def test_a_process_that_was_told_by_another_takes_its_own_signal_for_the_first() -> None:
    stop = Interruption(lambda: "saved", Clock())
    stop._training = True
    stop.reason, stop.code = "SIGTERM", 143  # another process had it first
    stop.handle(signal.SIGTERM, None)
    with pytest.raises(Interrupted):
        stop.handle(signal.SIGTERM, None)
