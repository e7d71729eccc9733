"""Rows become batches: padded where they need it, checked where it costs nothing, each row counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, default_data_collator
from transformers.trainer_utils import has_length

from ..errors import InputError
from ..objective.batch import IGNORED, NAMES, checked_batch, implied
from ..objective.objective import MaskScope

Collator = Callable[[list[Any]], Mapping[str, Any]]


class CheckedCollator:
    """A collator whose batches are checked on the CPU, before they go to a device where nobody looks at them.

    Args:
        collate: A collator of the user's, or None for one that pads (`padded`).
        vocab_size: The teacher's.
        keeps_rows: Whether a batch must have as many rows as were read, as it must in several processes, where rows
            that repeat others are told by their places.
    """

    def __init__(self, collate: Collator | None, vocab_size: int, keeps_rows: bool) -> None:
        self.collate, self.vocab_size, self.keeps_rows = collate, vocab_size, keeps_rows

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        """The batch of these rows.

        Raises:
            InputError: It is none of a clone.
        """
        batch = padded(rows) if self.collate is None else self.collate(rows)
        checked = checked_batch(batch, self.vocab_size)
        if self.keeps_rows and len(checked["input_ids"]) != len(rows):
            raise InputError(
                f"data_collator: made {len(checked['input_ids'])} rows of {len(rows)}, which can't be done in several "
                "processes, where the last rows are told by their places; pack the rows of the data set instead"
            )
        return checked


def padded(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
    """Rows of equal length as transformers' default collator makes them a batch, others padded on the right.

    Padding is token 0, told by a mask, with labels of -100: it changes no loss. What a row leaves out and another one
    has (labels, attention_mask, position_ids) is filled in with what its absence means.

    Raises:
        InputError: Rows hold no `input_ids`, or other things than numbers.
    """
    for row in rows:
        if not isinstance(row, Mapping) or row.get("input_ids") is None:
            names = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
            raise InputError(f"a row of the data set: got {names or 'nothing'}, expected input_ids; tokenise the text")
    lengths = [len(row["input_ids"]) for row in rows]
    rows = _alike(rows)
    try:
        if len(set(lengths)) == 1:
            return default_data_collator(list(rows))
        batch = {name: [torch.as_tensor(row[name]) for row in rows] for name in rows[0] if rows[0][name] is not None}
        batch.setdefault("attention_mask", [torch.ones(length, dtype=torch.long) for length in lengths])
        return {
            name: pad_sequence(values, batch_first=True, padding_value=IGNORED if name == "labels" else 0)
            for name, values in batch.items()
        }
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise InputError(
            f"rows of {min(lengths)} to {max(lengths)} tokens can't be made a batch: {' '.join(str(error).split())}; "
            "expected the same names in every row, each with one number a token"
        ) from error


def _alike(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows, each with every optional column that one of them has."""
    names = [name for name in NAMES[1:] if any(row.get(name) is not None for row in rows)]
    if all(row.get(name) is not None for row in rows for name in names):
        return rows
    filled = []
    for row in rows:
        absent = implied(torch.as_tensor(row["input_ids"]))
        given = {name: value for name, value in row.items() if value is not None}
        filled.append({**{name: absent[name] for name in names}, **given})
    return filled


def new_batches(
    trainer: Trainer, batches: Iterable[Any], dataset: Any, mask_scope: MaskScope, drop_last: bool = False
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Batches on the device, and how many rows of each are new; nothing is learned from the others.

    accelerate fills up the last batch of all processes with rows from the beginning, so that each has as many. Such a
    batch keeps its shape, so that all processes run alike.

    Args:
        batches: As this process reads them. dataset: What they are read from.
        mask_scope: The objective's. drop_last: Whether the last batch was left out instead.
    """
    state, index = trainer.accelerator.gradient_state, trainer.args.process_index
    for read in _one_size(batches, trainer.args.world_size):
        batch = trainer._prepare_inputs(read)
        rows = new = len(batch["input_ids"])
        if trainer.args.world_size > 1 and state.end_of_dataloader and not drop_last:
            whole = rows * trainer.args.world_size
            dispatched = isinstance(state.active_dataloader, DataLoaderDispatcher)
            # A loader that skips what was trained before a resume does not know what remains at the end.
            left = state.remainder if dispatched or not has_length(dataset) else len(dataset) % whole
            new = max(0, min(rows, (left or whole) - rows * index))
        if new < rows:
            labels = batch.get("labels", batch["input_ids"]).clone()
            labels[new:] = IGNORED
            batch["labels"] = labels
            if mask_scope == "lm":  # labels leave nothing out of the other terms
                mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).clone()
                mask[new:] = 0
                batch["attention_mask"] = mask
        yield batch, new


def _one_size(batches: Iterable[Any], processes: int) -> Iterator[Any]:
    """The batches; of a stream, which accelerate reads in one process for all, they must have one size."""
    read = iter(batches)
    while True:
        try:
            batch = next(read)
        except StopIteration:
            return
        except RuntimeError as error:
            if processes > 1 and "batches of different size" in str(error):
                raise InputError(
                    "a stream (IterableDataset) in several processes: got rows of several lengths, expected one; "
                    "pack or pad the rows, or give a data set with a length"
                ) from error
            raise
        yield batch


def tokens_of(batch: Mapping[str, Tensor], rows: int) -> Tensor:
    """How many tokens the first `rows` rows hold, padding left out; a scalar, int64."""
    present = batch["attention_mask"][:rows] != 0 if "attention_mask" in batch else None
    ids = batch["input_ids"][:rows]
    return torch.tensor(ids.numel(), device=ids.device) if present is None else present.sum()
