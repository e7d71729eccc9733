"""Checkpoints by the clock and before the first step, and which ones go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, tiny_model
from transformers import TrainerCallback

from lowrank_clone.model import CloneModel
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.checksums import seal
from lowrank_clone.training.saving import StartCheckpoint, TimedCheckpoints, rotate
from lowrank_clone.training.trainer import CloneTrainer


class Clock(TrainerCallback):
    """A clock on which every optimiser step takes five minutes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now += 300.0


def trainer_of(folder: Path, **options: Any) -> CloneTrainer:
    given = {"max_steps": 8, "per_device_train_batch_size": 1, "learning_rate": 1e-3, "logging_steps": 1}
    fixed = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = CloneArguments(output_dir=str(folder), **{**given, **fixed, **options})
    rows = [{"input_ids": row} for row in torch.randint(3, VOCAB, (8, 6), generator=torch.Generator().manual_seed(0))]
    return CloneTrainer(CloneModel(tiny_model("llama"), 16), arguments, train_dataset=rows, eval_dataset=rows[:2])


def timed(trainer: CloneTrainer, minutes: float) -> CloneTrainer:
    clock = Clock()
    trainer.remove_callback(TimedCheckpoints)
    trainer.add_callback(clock)
    trainer.add_callback(TimedCheckpoints(minutes, clock))
    return trainer


class Seen(TrainerCallback):
    """The checkpoints that there are after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, [[]]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(checkpoints(self.folder))


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_a_checkpoint_every_fifteen_minutes_replaces_the_one_before(tmp_path: Path) -> None:
    trainer = timed(trainer_of(tmp_path, save_steps=5, max_steps=10), 15)
    seen = Seen(tmp_path)
    trainer.add_callback(seen)
    trainer.train()
    # By the clock after steps 3 and 8, since that of step 5 starts the clock anew; by save_steps after 5 and 10.
    assert seen.steps[1:] == [[], [], [], [3], [3], [5], [5], [5], [5, 8], [5, 8]]
    assert checkpoints(tmp_path) == [5, 10]


@pytest.mark.parametrize("options", [{"save_strategy": "no"}, {"save_minutes": 0.0, "save_steps": 100}], ids=str)
def test_nothing_is_saved_by_the_clock(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = timed(trainer_of(tmp_path, **options), options.get("save_minutes", 15))
    trainer.train()
    assert checkpoints(tmp_path) == ([] if "save_strategy" in options else [8])


def test_a_trainer_saves_by_the_clock_unless_told_otherwise(tmp_path: Path) -> None:
    found = [c for c in trainer_of(tmp_path).callback_handler.callbacks if isinstance(c, TimedCheckpoints)]
    assert [callback.minutes for callback in found] == [15.0]


def test_resuming_from_the_start_s_checkpoint_is_the_same_run(tmp_path: Path) -> None:
    """Evaluations on the way change no random number that training draws."""

    def run(folder: Path, resume: Path | None = None, **options: Any) -> list[float]:
        trainer = trainer_of(folder, save_strategy="steps", save_steps=100, max_steps=3, **options)
        trainer.add_callback(StartCheckpoint(lambda: trainer._save_checkpoint(trainer.model, None)))
        trainer.clone.student.config.attention_dropout = 0.5
        for module in trainer.clone.student.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.5
        torch.manual_seed(3)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    whole = run(tmp_path / "whole", eval_on_start=True, eval_strategy="steps", eval_steps=1)
    assert json.loads((tmp_path / "whole" / "checkpoint-0" / "trainer_state.json").read_text())["global_step"] == 0
    assert run(tmp_path / "again", tmp_path / "whole" / "checkpoint-0") == whole


def test_rotation_keeps_the_newest_the_best_and_strange_folders(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("factors.safetensors", "trainer_state.json", "plan.json"):
            (folder / name).write_text("{}")
        seal(folder)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-0").mkdir()
    (tmp_path / "checkpoint-3" / "mine.txt").write_text("mine")
    rotate(tmp_path, None, tmp_path / "checkpoint-2", None)
    assert len(list(tmp_path.iterdir())) == 7
    rotate(tmp_path, 2, tmp_path / "checkpoint-2", str(tmp_path / "checkpoint-1"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint-0", "checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-notes")
    }
    assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == ["mine.txt"]
