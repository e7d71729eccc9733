"""A tiny clone and its trainer: shared by the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import VOCAB, tiny_model
from torch import Tensor
from transformers import TrainerCallback

from lowrank_clone.model import CloneModel
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.trainer import CloneTrainer

Sample = dict[str, Tensor]


def samples(count: int = 64, length: int = 8, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, VOCAB, (length,), generator=generator)} for _ in range(count)]


def unequal_samples() -> list[Sample]:
    """Rows of 1 to 8 tokens, padded on the right."""
    rows = []
    for index, row in enumerate(samples(8)):
        mask = (torch.arange(8) <= index).long()
        rows.append({**row, "attention_mask": mask})
    return rows


def arguments(folder: Path, **options: Any) -> CloneArguments:
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "rehearse": False,
    }
    return CloneArguments(output_dir=str(folder), **{**defaults, **options})


def clone(family: str = "llama", **options: Any) -> CloneModel:
    return CloneModel(tiny_model(family), 16, **{"factor_std": 0.2, **options})


def trainer_of(
    folder: Path, model: CloneModel | None = None, callbacks: list[TrainerCallback] | None = None, **options: Any
) -> CloneTrainer:
    extra = {key: options.pop(key) for key in ("eval_dataset", "processing_class") if key in options}
    return CloneTrainer(
        model or clone(), arguments(folder, **options), train_dataset=samples(), callbacks=callbacks, **extra
    )


def logs_of(trainer: CloneTrainer) -> list[dict[str, Any]]:
    return [log for log in trainer.state.log_history if "loss" in log]


def watch_batches(trainer: CloneTrainer) -> list[Tensor]:
    """The ids of each batch from now on."""
    seen: list[Tensor] = []
    trainer.clone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    return seen
