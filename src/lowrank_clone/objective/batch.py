"""What a batch of a clone is, and what is refused in one line: anything that would be misread."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError

NAMES = ("input_ids", "attention_mask", "labels", "position_ids")
IGNORED = -100
"""The label of a token that is not learned from."""
COUNT = "the sum of `count_tokens` over the micro-batches of one step, [2]; `clone.accumulate` does it"


def implied(ids: Tensor) -> dict[str, Tensor]:
    """What it means that ids `[..., length]` come without it: all are learned, none is padding, one document a row."""
    positions = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    return {"labels": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}


def checked_batch(batch: Mapping[str, Tensor | None], vocab_size: int | None = None) -> dict[str, Tensor]:
    """The tensors of a batch, once they are what a model of token ids takes; None stands for what is not given.

    Args:
        vocab_size: What ids and labels have to stay below. Values are looked at where it is given.

    Raises:
        InputError: A name, shape, dtype or value is unusable.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"a clone's batch: got a {type(batch).__name__}, expected {', '.join(NAMES)} by name")
    given = {name: value for name, value in batch.items() if value is not None}
    if unknown := sorted(given.keys() - set(NAMES)):
        raise InputError(
            f"a clone's batch: got `{unknown[0]}`, expected {', '.join(NAMES)}; remove it (packed documents are told "
            "apart by position_ids that restart, not by cu_seq_lens or a mask of four axes)"
        )
    if "input_ids" not in given:
        raise InputError(f"a clone's batch: got {', '.join(given) or 'nothing'}, expected input_ids; tokenise the text")
    _check_shapes(given)
    if vocab_size is not None and readable(given["input_ids"]):
        _check_values(given, vocab_size)
    return given


def checked_count(count: Tensor, own: Tensor) -> Tensor:
    """The count of a whole batch [2], of which `own` [2] is the part of one micro-batch.

    Raises:
        InputError: It is no tensor [2] of whole numbers, or less than the micro-batch's own.
    """
    if not isinstance(count, Tensor):
        raise InputError(f"num_items_in_batch: got {count!r} ({type(count).__name__}), expected {COUNT}")
    if count.shape != (2,) or not _is_whole(count):
        raise InputError(f"num_items_in_batch: got shape {list(count.shape)} of {count.dtype}, expected {COUNT}")
    if readable(count) and readable(own) and (count < own).any():
        raise InputError(
            f"num_items_in_batch: got {count.tolist()}, less than this micro-batch's own {own.tolist()}; "
            f"expected {COUNT}"
        )
    return count


def readable(values: Tensor) -> bool:
    """Whether reading values waits for nobody."""
    return values.device.type == "cpu"


def _check_shapes(batch: Mapping[str, Tensor]) -> None:
    for name, values in batch.items():
        if not isinstance(values, Tensor):
            raise InputError(f"{name}: got a {type(values).__name__}, expected a tensor [batch, length]")
        if name != "attention_mask" and not _is_whole(values):
            raise InputError(f"{name}: got {values.dtype}, expected whole numbers (torch.int64)")
    ids = batch["input_ids"]
    if ids.ndim != 2 or ids.numel() == 0:
        raise InputError(f"input_ids: got shape {list(ids.shape)}, expected [batch, length] with at least one token")
    hints = {
        "attention_mask": "documents of a packed row are told apart by position_ids",
        "labels": "labels are token ids, not shifted, and -100 where none is learned",
        "position_ids": "one position for each token",
    }
    for name, hint in hints.items():
        shapes = [ids.shape, torch.Size([1, ids.shape[1]])] if name == "position_ids" else [ids.shape]
        if name in batch and batch[name].shape not in shapes:
            got = list(batch[name].shape)
            raise InputError(f"{name}: got {got}, expected the shape of input_ids, {list(ids.shape)}; {hint}")


def _check_values(batch: Mapping[str, Tensor], vocab_size: int) -> None:
    _check_range("input_ids", batch["input_ids"], vocab_size, "the tokenizer is not the teacher's")
    mask = batch.get("attention_mask")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise InputError(
            f"attention_mask: got the value {float(mask.max()):g}, expected 1 for a token and 0 for padding; "
            "documents of a packed row are told apart by position_ids that restart"
        )
    if "labels" in batch:
        labels = batch["labels"]
        _check_range("labels", labels[labels != IGNORED], vocab_size, "or -100 where none is learned")
    if "position_ids" in batch:
        _check_range("position_ids", batch["position_ids"], None, "one position for each token")


def _check_range(name: str, values: Tensor, limit: int | None, hint: str) -> None:
    if values.numel():
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or (limit is not None and high >= limit):
            below = "" if limit is None else f" and below the vocabulary's size {limit}"
            raise InputError(f"{name}: got {low if low < 0 else high}, expected numbers from 0{below}; {hint}")


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
