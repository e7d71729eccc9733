"""Which tokens count, and how many: the one place that decides it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..precision import wide_dtype


def count_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """[2]: how many tokens of a micro-batch count in `lm`, and how many positions in `kl` and `clone`."""
    targets, valid = counted(batch["input_ids"], batch.get("attention_mask"), batch.get("labels"))
    return torch.stack([(targets != -100).sum(), valid.sum()])


def counted(ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next-token targets [n] with -100 where none is counted, and which positions count [n]."""
    own = ids if labels is None else labels
    if attention_mask is not None:
        own = own.masked_fill(attention_mask == 0, -100)
    following = own[:, 1:]
    if attention_mask is not None:  # padding predicts nothing, not even the first token after it
        following = following.masked_fill(attention_mask[:, :-1] == 0, -100)
    targets = torch.nn.functional.pad(following, (0, 1), value=-100)
    return targets.flatten(), (own != -100).flatten()


def token_count(count: Tensor | float | None, counted: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`count`, or how many are `counted`, at least 1, in a dtype that does not round the terms divided by it."""
    if count is None:
        assert counted is not None
        count = counted.sum()
    return torch.as_tensor(count, dtype=wide_dtype(dtype)).clamp(min=1)
