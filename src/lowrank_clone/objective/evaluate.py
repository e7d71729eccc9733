"""Evaluation that training's own numbers can be compared with: the same loss, the same reduction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..hooks import evaluating
from .head import head_input, read_head
from .lm_kl import lm_kl_loss


@dataclass(frozen=True)
class LanguageLoss:
    """Mean next-token loss in nats per token over `tokens` predicted tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def batches(blocks: Sequence[Any], size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Token ids [size, length] of rows with `input_ids`; the last batch may be smaller."""
    for start in range(0, len(blocks), size):
        rows = [blocks[i]["input_ids"] for i in range(start, min(start + size, len(blocks)))]
        yield torch.as_tensor(rows, device=device)


@torch.no_grad()
def language_loss(model: PreTrainedModel, blocks: Sequence[Any], batch_size: int = 4) -> LanguageLoss:
    """Next-token loss of any causal language model on blocks of equal length (rows with `input_ids`), chunked over
    tokens as in training, so that [batch, length, V] logits never exist."""
    head = read_head(model)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for ids in batches(blocks, batch_size, model.device):
        with evaluating(model), head_input(model) as caught:
            model(input_ids=ids, use_cache=False)
        hidden = caught.hidden[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten()
        _, lm, _ = lm_kl_loss(hidden, head, None, None, targets, torch.ones_like(targets, dtype=torch.bool))
        total += lm.double().cpu() * len(targets)
        tokens += len(targets)
    return LanguageLoss(float(total) / tokens, tokens)


BATCH_TOKENS = 1024  # of one forward pass, whose tapped activations are alive together


def rows_per_batch(length: int) -> int:
    """Blocks of this length in one forward pass."""
    return max(1, BATCH_TOKENS // length)
