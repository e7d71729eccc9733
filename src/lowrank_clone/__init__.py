"""Low-Rank Clone: a frozen decoder language model becomes a narrower student of the same architecture.

Reading order: plan -> factors -> objective -> model -> training.

    clone = CloneModel(teacher, hidden_size=384, temperature=40.0, clone_weight=0.2, kl_weight=1.28)
    trainer = CloneTrainer(clone, CloneArguments(output_dir="runs/a"), train_dataset=blocks, processing_class=tokenizer)
    trainer.train()
    clone.student.save_pretrained("student")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.config import DataConfig, SourceConfig
    from .data.prepare import prepare
    from .errors import InputError
    from .model import CloneModel
    from .objective.objective import Objective
    from .objective.output import CloneOutput
    from .objective.tokens import count_tokens
    from .plan.classify import make_plan
    from .plan.roles import Plan
    from .run.saved import load_run
    from .starts.calibrated import calibrated_start
    from .starts.channels import channels_start
    from .starts.random import random_start
    from .training.arguments import CloneArguments
    from .training.checkpoint import load_clone, save_clone, start_clone
    from .training.optim import MuonAdamW, bind, refresh
    from .training.readers import save_for_readers
    from .training.trainer import CloneTrainer

__all__ = [
    "CloneArguments",
    "CloneModel",
    "CloneOutput",
    "CloneTrainer",
    "DataConfig",
    "InputError",
    "MuonAdamW",
    "Objective",
    "Plan",
    "SourceConfig",
    "bind",
    "calibrated_start",
    "channels_start",
    "count_tokens",
    "load_clone",
    "load_run",
    "make_plan",
    "prepare",
    "random_start",
    "refresh",
    "save_clone",
    "save_for_readers",
    "start_clone",
]

_HOMES = {
    "CloneArguments": "training.arguments",
    "CloneModel": "model",
    "CloneOutput": "objective.output",
    "CloneTrainer": "training.trainer",
    "DataConfig": "data.config",
    "InputError": "errors",
    "MuonAdamW": "training.optim",
    "Objective": "objective.objective",
    "Plan": "plan.roles",
    "SourceConfig": "data.config",
    "bind": "training.optim",
    "calibrated_start": "starts.calibrated",
    "channels_start": "starts.channels",
    "count_tokens": "objective.tokens",
    "load_clone": "training.checkpoint",
    "load_run": "run.saved",
    "make_plan": "plan.classify",
    "prepare": "data.prepare",
    "random_start": "starts.random",
    "refresh": "training.optim",
    "save_clone": "training.checkpoint",
    "save_for_readers": "training.readers",
    "start_clone": "training.checkpoint",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `lrc --help` does not wait for torch and transformers.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
