"""A run that goes on from a checkpoint: what was not done there, and how its folder is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..training.arguments import CloneArguments
from ..training.last_checkpoint import relocate_best
from ..training.metrics import MetricsFile
from ..training.trainer import CloneTrainer
from .folder import RunFolder


class FolderKeeper(TrainerCallback):
    """Note every checkpoint in the run's folder, and let the run take an older one's place with its first."""

    def __init__(self, folder: RunFolder, trainer: CloneTrainer) -> None:
        self.folder, self.trainer = folder, trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is complete."""
        self.trainer.accelerator.wait_for_everyone()  # each writes its own random state
        self.folder.saved(self.trainer)
        self.trainer.accelerator.wait_for_everyone()


class MissedEvaluation(TrainerCallback):
    """Evaluate first where the checkpoint's step was to be evaluated: a signal saves a step and ends the run."""

    def __init__(self, trainer: CloneTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate, as the end of that step would have."""
        if _missed_evaluation(args, state):
            self.trainer._determine_best_metric(self.trainer._evaluate(None, None), trial=None)


def take_end(trainer: CloneTrainer, state: TrainerState) -> None:
    """Be where a checkpoint at the end of training left off."""
    state.init_training_references(trainer, state.max_steps, state.num_train_epochs, trial=None)
    relocate_best(state, trainer._run_dir())
    trainer.state = state
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, MetricsFile):
            callback.go_on(state)
    if _missed_evaluation(trainer.args, state):
        trainer._determine_best_metric(trainer.evaluate(), trial=None)
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(trainer._checkpoint_dir())
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()


def state_of(checkpoint: Path) -> TrainerState:
    """The trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _missed_evaluation(args: CloneArguments, state: TrainerState) -> bool:
    """Whether the step was to be evaluated and was not."""
    steps = args.eval_strategy == "steps" and state.global_step % (args.eval_steps or 1) == 0
    epoch = args.eval_strategy == "epoch" and float(state.epoch or 0.5).is_integer()
    passed = state.global_step if steps else state.epoch or 0
    done = any(line["step"] == state.global_step and "eval_lm" in line for line in state.log_history)
    return (steps or epoch) and passed >= args.eval_delay and not done
