"""Evaluation that training's own numbers can be compared with: the same loss, the same reduction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import InputError
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
    """Token ids [size, length] of rows with `input_ids`; the last batch may be smaller.

    Raises:
        InputError: Rows have several lengths.
    """
    for start in range(0, len(blocks), size):
        rows = [blocks[i]["input_ids"] for i in range(start, min(start + size, len(blocks)))]
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise InputError(f"blocks: got {min(lengths)} to {max(lengths)} tokens, expected one length; pack the text")
        yield torch.stack([torch.as_tensor(row) for row in rows]).to(device)


@torch.no_grad()
def language_loss(model: PreTrainedModel, blocks: Sequence[Any], batch_size: int = 4) -> LanguageLoss:
    """Next-token loss of any causal language model on blocks of equal length (rows with `input_ids`).

    Chunked over tokens as in training, so that [batch, length, V] logits never exist.

    Raises:
        InputError: There is no token to predict, or blocks have several lengths.
    """
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
    if not tokens:
        raise InputError(f"blocks: got {len(blocks)} without a token to predict, expected blocks of two tokens or more")
    return LanguageLoss(float(total) / tokens, tokens)


BATCH_TOKENS = 1024  # of one forward pass, whose tapped activations are alive together


def rows_per_batch(length: int) -> int:
    """Blocks of this length in one forward pass."""
    return max(1, BATCH_TOKENS // length)
