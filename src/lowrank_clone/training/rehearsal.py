"""One step of the largest batch before the first one, so that what does not fit in memory is told at once.

Nothing is learned from it: factors, running means, random states and the optimiser are then as they were.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from ..factors.factors import Factors
from ..model import CloneModel
from ..objective.batch import NAMES
from .fully_sharded import is_sharded
from .optim import plain

# Rows that are looked at for the longest one; blocks of a recipe are all of one length.
LOOKED_AT = 256


class Rehearsal(TrainerCallback):
    """Rehearses when training begins, unless `rehearse` is off, rows come as a stream, or factors are sharded.

    Args:
        trainer: The `CloneTrainer` that it belongs to.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the largest batch."""
        trainer, rows = self._trainer, self._trainer.train_dataset
        sharded = trainer.is_deepspeed_enabled or is_sharded(trainer.clone)
        if not args.rehearse or sharded or not has_length(rows):
            return
        with as_it_was(trainer.clone):
            collated = trainer.data_collator([longest(rows)] * args.per_device_train_batch_size)
            batch = trainer._prepare_inputs(collated)
            rehearse(trainer.clone, plain(trainer.optimizer), batch, args.gradient_accumulation_steps)


def rehearse(clone: CloneModel, optimizer: Optimizer, batch: Mapping[str, Any], accumulation: int) -> None:
    """Forward and backward of a batch while the optimiser's state is there, twice where micro-batches are accumulated.

    Args:
        batch: What the clone's `forward` takes, on its device.
    """
    made = not optimizer.state
    if made:
        _step_on_nothing(optimizer, clone.factors)
    clone.train()
    try:
        for _ in range(min(accumulation, 2)):
            clone(**batch).loss.backward()
        clone.factors.pull()
    finally:
        clone.factors.zero_grad()
        if made:
            optimizer.state.clear()


def longest(rows: Any) -> dict[str, Any]:
    """The longest of the first rows, with what a clone takes of it."""
    first = islice((rows[index] for index in range(len(rows))), LOOKED_AT)
    row = max(first, key=lambda row: len(row["input_ids"]))
    return {name: value for name, value in row.items() if name in (*NAMES, "label", "label_ids")}


@contextmanager
def as_it_was(clone: CloneModel) -> Iterator[None]:
    """Give a clone its mode, its running means, and the process its random states, back."""
    mode, squares = clone.training, copy.deepcopy(clone.target_squares)
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        clone.train(mode)
        clone.target_squares = squares


@torch.no_grad()
def _step_on_nothing(optimizer: Optimizer, factors: Factors) -> None:
    """Let an optimiser make its state, by a step along gradients of 0 at a rate of 0, after which all is as before."""
    before = {name: factor.detach().to("cpu", copy=True) for name, factor in factors.items()}
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    saved, pushes = copy.deepcopy(options), factors.pushes
    for factor in factors.parameters():
        factor.grad = torch.zeros_like(factor) if factor.requires_grad else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        optimizer.step()
    finally:
        for group, theirs in zip(optimizer.param_groups, saved, strict=True):
            group.update(theirs)
        factors.load(before)
        factors.pushes = pushes
