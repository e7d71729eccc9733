"""Which tokens count, and how many: the one place that decides it.

A position counts by what it *predicts*, the next token of its own document. A document is a row, or a part of a row
between paddings or from one restart of `position_ids` to the next (packed rows). Per position i:

    lm          the next token is in the same document, and its label is not -100
    kl, clone   the same; and the last position of a document, which predicts what follows it, counts if no label of the
                document is masked but that of its first token, which no position predicts

So without labels, or with labels that mask nothing, all L positions of a row are compared, as in the published code
(LRC, arXiv 2505.12781); where a prompt is masked, the positions are compared that predict the answer, no others. A
label of -100 on a document's first token changes nothing. Padding a batch, splitting it, or packing it differently
changes nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..precision import wide_dtype

IGNORED = -100
"""The label of a token that is not learned from."""


def count_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """[2], int64: how many tokens of a micro-batch count in `lm`, and how many positions in `kl` and `clone`.

    Args:
        batch: `input_ids` [batch, length], and `attention_mask`, `labels`, `position_ids` where there are any.

    Raises:
        InputError: The batch is not usable (`check_batch`).
    """
    check_batch(batch)
    optional = (batch.get(key) for key in ("attention_mask", "labels", "position_ids"))
    targets, compared = counted(batch["input_ids"], *optional)
    return torch.stack([(targets != IGNORED).sum(), compared.sum()])


def counted(
    ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Next-token targets [n], int64, with -100 where none counts in `lm`; and which positions count in `kl` [n]."""
    present = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    labels = (ids if labels is None else labels).long()
    known = labels != IGNORED
    starts = document_starts(present, position_ids)
    continues = pad(present[:, 1:] & ~starts[:, 1:], (0, 1)) & present
    predicts_known = continues & pad(known[:, 1:], (0, 1))
    targets = pad(labels[:, 1:], (0, 1)).masked_fill(~predicts_known, IGNORED)
    # The last position of a document predicts a token that nobody knows: it follows the labels of its document.
    document = starts.long().cumsum(-1)
    masked = present & ~known & ~(starts & continues)
    masked_labels = document.new_zeros(len(ids), ids.shape[1] + 1).scatter_add_(1, document, masked.long())
    unmasked = masked_labels.gather(1, document) == 0
    compared = present & torch.where(continues, predicts_known, unmasked)
    return targets.flatten(), compared.flatten()


def document_starts(present: Tensor, position_ids: Tensor | None) -> Tensor:
    """[batch, length] bool: the first token of each document. `position_ids` restart where they do not go up by 1."""
    starts = present.clone()
    starts[:, 1:] &= ~present[:, :-1]
    if position_ids is not None:
        starts[:, 1:] |= present[:, 1:] & (position_ids.diff(dim=-1) != 1).expand_as(starts[:, 1:])
    return starts


def token_count(count: Tensor | float | None, counted: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`count`, or how many are `counted`, at least 1, in a dtype that does not round the terms divided by it."""
    if count is None:
        assert counted is not None
        count = counted.sum()
    return torch.as_tensor(count, dtype=wide_dtype(dtype)).clamp(min=1)


def check_batch(batch: Mapping[str, Tensor], vocab_size: int | None = None) -> None:
    """Refuse a batch that would be misread. Values are read on the CPU only, where that waits for nobody.

    Args:
        vocab_size: What ids and labels have to stay below.

    Raises:
        InputError: A shape, dtype or value is not what a model of token ids takes.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        what = f"batch with {', '.join(sorted(batch)) or 'nothing'}" if ids is None else type(ids).__name__
        raise InputError(f"input_ids: got a {what}, expected a tensor [batch, length] of token ids; tokenise the text")
    _whole_numbers("input_ids", ids)
    if ids.ndim != 2 or ids.numel() == 0:
        raise InputError(f"input_ids: got shape {list(ids.shape)}, expected [batch, length] with at least one token")
    _in_range("input_ids", ids, vocab_size, "the tokenizer is not the teacher's")
    mask, labels, positions = (batch.get(key) for key in ("attention_mask", "labels", "position_ids"))
    if mask is not None:
        _shaped("attention_mask", mask, [ids.shape], "documents of a packed row are told apart by position_ids")
        if mask.device.type == "cpu" and not ((mask == 0) | (mask == 1)).all():
            raise InputError(
                f"attention_mask: got the value {float(mask.max()):g}, expected 1 for a token and 0 for padding; "
                "documents of a packed row are told apart by position_ids that restart"
            )
    if labels is not None:
        _whole_numbers("labels", labels)
        _shaped("labels", labels, [ids.shape], "labels are token ids, not shifted, and -100 where none is learned")
        _in_range("labels", labels[labels != IGNORED] if labels.device.type == "cpu" else labels, vocab_size, "")
    if positions is not None:
        _whole_numbers("position_ids", positions)
        _shaped("position_ids", positions, [ids.shape, torch.Size([1, ids.shape[1]])], "one position for each token")
        _in_range("position_ids", positions, None, "")


def check_count(count: object, own: Tensor) -> None:
    """Refuse what is no count of a whole batch, of which `own` [2] is the part of this micro-batch.

    Raises:
        InputError: It is no tensor [2] of whole numbers, or smaller than the micro-batch's own count.
    """
    expected = "expected the sum of `count_tokens` over the micro-batches of one step, [2]; `clone.accumulate` does it"
    if not isinstance(count, Tensor):
        raise InputError(f"num_items_in_batch: got {count!r} ({type(count).__name__}), {expected}")
    if count.shape != (2,) or count.is_floating_point() or count.dtype == torch.bool:
        raise InputError(f"num_items_in_batch: got shape {list(count.shape)} of {count.dtype}, {expected}")
    if count.device.type == "cpu" and own.device.type == "cpu" and (count < own).any():
        raise InputError(
            f"num_items_in_batch: got {count.tolist()}, less than this micro-batch's own {own.tolist()}; {expected}"
        )


def _whole_numbers(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name}: got {got}, expected whole numbers (torch.int64)")


def _shaped(name: str, values: Tensor, shapes: list[torch.Size], why: str) -> None:
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.shape not in shapes:
        raise InputError(f"{name}: got {got}, expected the shape of input_ids, {list(shapes[0])}; {why}")


def _in_range(name: str, values: Tensor, limit: int | None, why: str) -> None:
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = (int(end) for end in values.aminmax())
    if low < 0 or (limit is not None and high >= limit):
        below = "" if limit is None else f" and below the vocabulary's size {limit}"
        raise InputError(
            f"{name}: got {low if low < 0 else high}, expected numbers from 0{below}" + (f"; {why}" if why else "")
        )
