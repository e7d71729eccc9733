"""What goes into a forward pass of a clone and what comes out: which tokens count, and the named losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class CloneOutput(ModelOutput):
    """Scalars of one forward pass, each a mean over the counted tokens. Only `loss` carries gradient.

    loss: `lm_weight * lm + kl_weight * kl + clone_weight * clone`. lm: nats per token. kl: T^2 times nats per token.
    clone: the sum of `taps`, which holds every tap's MSE by the student's parameter name.
    """

    loss: Tensor | None = None
    lm: Tensor | None = None
    kl: Tensor | None = None
    clone: Tensor | None = None
    taps: dict[str, Tensor] | None = None


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
