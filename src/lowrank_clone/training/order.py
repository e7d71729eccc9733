"""In which order rows are read, and a hash over those that were.

Both depend on the seed and the rows alone: not on the number of processes, loader workers or micro-batches, and not on
whether a run was stopped in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import has_length

from ..mixing import scrambled_tensor, shuffled

_AT_ONCE = 65_536  # places handed out as Python numbers at a time


class ShuffledRows(Sampler[int]):
    """Every row once an epoch, shuffled by (seed, epoch).

    Args:
        rows: How many there are.
        seed: Of the order; each epoch has another one.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = shuffled(self.rows, self.seed, self.epoch)
        for start in range(0, self.rows, _AT_ONCE):
            yield from order[start : start + _AT_ONCE].tolist()


def shuffled_rows(args: TrainingArguments, rows: Any) -> ShuffledRows | None:
    """The sampler of a data set; None for a stream, and where the arguments ask for another strategy."""
    if not has_length(rows) or args.train_sampling_strategy != "random":
        return None
    return ShuffledRows(len(rows), args.seed if args.data_seed is None else args.data_seed)


def row_hashes(batch: Mapping[str, Tensor], new: int) -> Tensor:
    """`[rows]` int64 of the rows of a batch, computed on its device; 0 for those after the first `new`, which repeat
    others.

    A row's hash is that of its ids in order without padding, so it is the same in whatever batch the row is. It is a
    sum over tokens, `sum_i mix(mix(i) ^ id_i)`, mixed with the length.
    """
    ids = batch["input_ids"].long()
    present = batch["attention_mask"] != 0 if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    places = present.long().cumsum(1) - 1
    tokens = torch.where(present, scrambled_tensor(scrambled_tensor(places) ^ ids), 0)
    hashes = scrambled_tensor(tokens.sum(1) ^ scrambled_tensor(present.sum(1)))
    hashes = torch.where(hashes == 0, 1, hashes)  # 0 is for rows that do not count
    return torch.where(torch.arange(len(ids), device=ids.device) < new, hashes, 0)


def in_global_order(hashes: Sequence[Tensor], processes: int, index: int) -> Tensor:
    """`[rows of all processes]` int64: this process's hashes of a step in their places of the global order, else 0.

    In that order come micro-batch after micro-batch, and in each the processes' rows one after the other; so the sum
    of these tensors over all processes is the whole step.

    Args:
        hashes: `[rows]` of each micro-batch; every process has as many of as many rows.
    """
    places = [torch.nn.functional.pad(h, (len(h) * index, len(h) * (processes - 1 - index))) for h in hashes]
    return torch.cat(places)


def hash_of(trainer: Trainer) -> DataHash:
    """The callback of a trainer, which Trainer replaces where it restores callbacks from a checkpoint."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, DataHash))


class DataHash(TrainerCallback, ExportableState):
    """A hash over all rows that were trained on, in their order: `data_hash` in logs and checkpoints.

    It is a chain, `value = blake2b(value, row's hash)` of 8 bytes, so equal values mean equal rows in equal order. A
    checkpoint holds it in `trainer_state.json`, and a run that resumes goes on from there.

    Attributes:
        value: Hexadecimal; empty before the first row.
        pending: Rows of the step that is under way, which count once their gradient was found to be finite.
    """

    def __init__(self) -> None:
        self.value, self.pending = "", list[int]()

    def state(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return {"args": {}, "attributes": {"value": self.value}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint's value, or begin."""
        self.value, self.pending = (data_hash(state) or "") if state.global_step else "", []
        self._show(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step will be done."""
        for row in self.pending:
            self.value = hashlib.blake2b(
                bytes.fromhex(self.value) + row.to_bytes(8, signed=True), digest_size=8
            ).hexdigest()
        self.pending = []
        self._show(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Note it beside a training loss in the history of logs. Trackers draw numbers only and are not given it."""
        if "loss" in (logs or {}):
            state.log_history[-1]["data_hash"] = self.value

    def _show(self, state: TrainerState) -> None:
        assert isinstance(state.stateful_callbacks, dict)
        state.stateful_callbacks[type(self).__name__] = self.state()


def data_hash(state: TrainerState) -> str | None:
    """The hash over the rows that a run has read; None where its state holds none."""
    assert isinstance(state.stateful_callbacks, dict)
    stored: Any = state.stateful_callbacks.get(DataHash.__name__)
    return None if stored is None else stored["attributes"]["value"]
