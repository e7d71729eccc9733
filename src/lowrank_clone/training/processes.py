"""What keeps several processes in step with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from .fully_sharded import is_sharded, share_factors
from .trainer_inputs import check_optimizer


class InStep(TrainerCallback):
    """At the beginning all processes have the first one's factors; at the end they agree on the loss that is reported.

    Args:
        trainer: The `CloneTrainer` that it belongs to.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the optimiser that will be stepped, whoever made it, and share the factors."""
        clone = self._trainer.clone
        check_optimizer(self._trainer.optimizer, clone.factors)
        if args.world_size > 1 and not is_sharded(clone):  # those were shared before
            share_factors(clone)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Share the loss since the last log, of which Trainer would report the first process's own part."""
        if args.world_size > 1:
            loss = self._trainer._tr_loss
            loss.copy_(self._trainer.accelerator.reduce(loss.clone(), "mean"))


def add_up(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if trainer.args.world_size == 1:
        return values
    total: Tensor = trainer.accelerator.reduce(values.to(trainer.args.device), "sum")
    return total


def all_terms(trainer: Trainer, terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms of a loss summed over all processes; the one place where they are read from the device."""
    if not terms:
        return {}
    total = add_up(trainer, torch.stack([value.float() for value in terms.values()])).tolist()
    return dict(zip(terms, total, strict=True))
