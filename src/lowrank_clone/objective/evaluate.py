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
from .batch import IGNORED, implied
from .documents import model_inputs
from .head import head_input, read_head
from .lm_kl import lm_kl_loss
from .tokens import counted_in


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


def whole_batches(blocks: Sequence[Any], size: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Everything that a clone is given of these rows, `[size, length]` by name; the last batch may be smaller.

    What a row leaves out and another one has means what its absence means: ids that are all learned, no padding, one
    document.

    Raises:
        InputError: Rows have several lengths.
    """
    for start, ids in zip(range(0, len(blocks), size), batches(blocks, size, device), strict=False):
        rows = [blocks[i] for i in range(start, start + len(ids))]
        batch = {"input_ids": ids}
        for name, values in implied(ids).items():
            given = [values[i] if row.get(name) is None else torch.as_tensor(row[name]) for i, row in enumerate(rows)]
            if any(row.get(name) is not None for row in rows):
                batch[name] = torch.stack([value.to(device) for value in given])
        yield batch


@torch.no_grad()
def language_loss(model: PreTrainedModel, blocks: Sequence[Any], batch_size: int = 4) -> LanguageLoss:
    """Next-token loss of any causal language model on blocks of equal length, over the tokens that training counts.

    Chunked over tokens as in training, so that [batch, length, V] logits never exist.

    Args:
        blocks: Rows with `input_ids`, and `labels`, `attention_mask`, `position_ids` where they have any.

    Raises:
        InputError: There is no token to predict, or blocks have several lengths.
    """
    head = read_head(model)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for batch in whole_batches(blocks, batch_size, model.device):
        with evaluating(model), head_input(model) as caught:
            model(**model_inputs(batch, model), use_cache=False)
        targets, compared = counted_in(batch)
        rows = (targets != IGNORED).nonzero().squeeze(-1)
        hidden = caught.hidden.flatten(0, 1)[rows]
        _, lm, _ = lm_kl_loss(hidden, head, None, None, targets[rows], compared[rows])
        total += lm.double().cpu() * len(rows)
        tokens += len(rows)
    if not tokens:
        raise InputError(f"blocks: got {len(blocks)} without a token to predict, expected blocks of two tokens or more")
    return LanguageLoss(float(total) / tokens, tokens)


BATCH_TOKENS = 1024  # of one forward pass, whose tapped activations are alive together


def rows_per_batch(length: int) -> int:
    """Blocks of this length in one forward pass."""
    return max(1, BATCH_TOKENS // length)
