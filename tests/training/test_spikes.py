"""Steps that would spoil a run: left out, gone back from, or the end of it; always the same after a resume."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import clone, logs_of, trainer_of
from transformers import TrainerCallback

from lowrank_clone.errors import NonFiniteLoss
from lowrank_clone.model import CloneModel
from lowrank_clone.training.last_checkpoint import last_checkpoint
from lowrank_clone.training.optim import plain
from lowrank_clone.training.spikes import FEWEST, _beyond
from lowrank_clone.training.trainer import CloneTrainer


class Spoil(TrainerCallback):
    """Multiply the loss of these steps, counted from 1."""

    def __init__(self, model: CloneModel, steps: dict[int, float]) -> None:
        self.steps, self.factor = steps, 1.0
        model.register_forward_hook(self.spoiled)

    def spoiled(self, module: Any, args: Any, output: Any) -> Any:
        output["loss"] = output["loss"] * self.factor
        return output

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.factor = self.steps.get(state.global_step + 1, 1.0)


def spoiled(folder: Path, steps: dict[int, float], **options: Any) -> CloneTrainer:
    model = clone(clone_normalization="target")
    return trainer_of(folder, model, [Spoil(model, steps)], **options)


def events(trainer: CloneTrainer) -> list[tuple[int, str]]:
    return [(log["step"], log["event"]) for log in trainer.state.log_history if "event" in log]


def same(one: CloneTrainer, two: CloneTrainer) -> bool:
    return all(torch.equal(factor, two.clone.factors[name]) for name, factor in one.clone.factors.items())


def test_a_step_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    """The state after it is the state before it, but for the schedule and the text that was read."""
    states: dict[int, Any] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            factors = {name: value.clone() for name, value in trainer.clone.factors.state_dict().items()}
            states[state.global_step] = (
                factors,
                [float(state["step"]) for state in plain(trainer.optimizer).state.values()][:1],
            )

    trainer = spoiled(tmp_path, {1: math.nan, 4: math.inf}, logging_steps=3)
    trainer.add_callback(Watch())
    trainer.train()
    assert events(trainer) == [(1, "skipped"), (4, "skipped")]
    assert all(torch.equal(states[3][0][name], value) for name, value in states[4][0].items())
    assert not all(torch.equal(states[4][0][name], value) for name, value in states[5][0].items())
    assert states[1][1] == [] and states[3][1] == states[4][1] == [2] and states[6][1] == [4]
    rates = [log["learning_rate"] for log in logs_of(trainer)]
    assert rates == pytest.approx([1e-3 * 4 / 6, 1e-3 * 1 / 6])  # linear to 0 over six steps, spoilt ones included
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["lm"]) for log in logs_of(trainer))
    assert trainer.state.num_input_tokens_seen == 6 * 16


def test_a_log_after_a_spoilt_step_is_a_mean_over_the_others(tmp_path: Path) -> None:
    trainer = spoiled(tmp_path, {2: math.nan}, logging_steps=2, max_steps=2)
    each = spoiled(tmp_path / "each", {2: math.nan}, logging_steps=1, max_steps=2)
    trainer.train(), each.train()
    for name in ("loss", "lm", "clone"):
        assert logs_of(trainer)[0][name] == pytest.approx(logs_of(each)[0][name], rel=1e-6)


@pytest.mark.parametrize("on_spike", ["skip", "rewind"])
def test_a_resumed_run_does_the_same(on_spike: str, tmp_path: Path) -> None:
    options = {"on_spike": on_spike, "logging_steps": 3, "max_steps": 8, "save_steps": 3}
    spoil = {2: math.nan, 5: math.nan}
    whole = spoiled(tmp_path / "whole", spoil, **options)
    whole.train()
    resumed = spoiled(tmp_path / "whole", spoil, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(whole, resumed) and events(whole) == events(resumed)
    # Before the first checkpoint there is nothing to go back to.
    assert [event for _, event in events(whole)] == [
        "skipped",
        "skipped" if on_spike == "skip" else "rewound to step 3",
    ]


def test_going_back_is_to_the_checkpoint(tmp_path: Path) -> None:
    trainer = spoiled(tmp_path, {5: math.nan}, on_spike="rewind", max_steps=5, save_steps=3)
    trainer.train()
    stored = clone(clone_normalization="target")
    from lowrank_clone.training.checkpoint import load_clone

    load_clone(stored, tmp_path / "checkpoint-3")
    assert all(torch.equal(factor, stored.factors[name]) for name, factor in trainer.clone.factors.items())


@pytest.mark.parametrize("options", [{"on_spike": "stop"}, {"spike_limit": 1}], ids=str)
def test_the_run_stops_before_the_step_and_can_go_on(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = spoiled(tmp_path, {2: math.nan, 3: math.nan}, **options)
    with pytest.raises(NonFiniteLoss, match="the gradient norm is nan"):
        trainer.train()
    at = 1 if "on_spike" in options else 2
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{at}"
    resumed = spoiled(tmp_path, {2: math.nan, 3: math.nan})
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert resumed.state.global_step == 6 and (3, "skipped") in events(resumed)


def test_a_spike_is_told_by_robust_deviations(tmp_path: Path) -> None:
    seen = deque([10.0 + 0.1 * (i % 5) for i in range(FEWEST)])  # median 10.2, median deviation 0.1
    scale = max(1.4826 * 0.1, 0.01 * 10.2)
    assert _beyond("loss", 10.2 + 5.9 * scale, seen, 6.0) is None
    assert "6.1 deviations above 10.2" in str(_beyond("loss", 10.2 + 6.1 * scale, seen, 6.0))
    assert _beyond("loss", 1.0, seen, 6.0) is None  # below is no spike
    assert _beyond("loss", 1e9, list(seen)[1:], 6.0) is None  # too few to tell
    steps = FEWEST + 4
    trainer = spoiled(tmp_path, {FEWEST + 2: 1e4}, spike_deviations=20, max_steps=steps, save_strategy="no")
    trainer.train()
    assert events(trainer) == [(FEWEST + 2, "skipped")]
