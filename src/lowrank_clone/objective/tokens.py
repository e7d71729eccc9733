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

With `mask_scope` lm, labels say what counts in `lm` alone: every token counts in `kl` and `clone`, padding does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..precision import wide_dtype
from .batch import IGNORED, checked_batch
from .objective import MaskScope


def count_tokens(batch: Mapping[str, Tensor], mask_scope: MaskScope = "all") -> Tensor:
    """[2], int64: how many tokens of a micro-batch count in `lm`, and how many positions in `kl` and `clone`.

    Args:
        batch: `input_ids` [batch, length], and `attention_mask`, `labels`, `position_ids` where there are any.
        mask_scope: The objective's.

    Raises:
        InputError: The batch is not usable (`checked_batch`).
    """
    checked_batch(batch)
    targets, compared = counted_in(batch, mask_scope)
    return torch.stack([(targets != IGNORED).sum(), compared.sum()])


def counted_in(batch: Mapping[str, Tensor], mask_scope: MaskScope = "all") -> tuple[Tensor, Tensor]:
    """`counted` of a batch by name."""
    mask, labels, positions = (batch.get(key) for key in ("attention_mask", "labels", "position_ids"))
    return counted(batch["input_ids"], mask, labels, positions, mask_scope)


def counted(
    ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    position_ids: Tensor | None,
    mask_scope: MaskScope = "all",
) -> tuple[Tensor, Tensor]:
    """Next-token targets [n], int64, with -100 where none counts in `lm`; and which positions count in `kl` [n]."""
    present = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    labels = (ids if labels is None else labels).long()
    known = labels != IGNORED
    starts = document_starts(present, position_ids)
    continues = pad(present[:, 1:] & ~starts[:, 1:], (0, 1)) & present
    predicts_known = continues & pad(known[:, 1:], (0, 1))
    targets = pad(labels[:, 1:], (0, 1)).masked_fill(~predicts_known, IGNORED)
    if mask_scope == "lm":
        return targets.flatten(), present.flatten()
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
