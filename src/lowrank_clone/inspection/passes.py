"""Running models over the blocks that are inspected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..hooks import evaluating
from ..objective.evaluate import batches, rows_per_batch
from ..objective.head import head_input
from ..progress import track


def token_batches(blocks: Sequence[Any], device: torch.device, label: str, shown: bool) -> Iterator[Tensor]:
    """Token ids [rows, length] of all blocks, in batches of about `BATCH_TOKENS` tokens.

    Args:
        label: What is measured on them, for the progress on stderr. shown: Whether to show it.
    """
    rows = rows_per_batch(len(blocks[0]["input_ids"]))
    return track(batches(blocks, rows, device), -(-len(blocks) // rows), label, "batch", shown)


def forward(model: PreTrainedModel, ids: Tensor) -> None:
    """Run up to the LM head, in eval mode."""
    with evaluating(model), head_input(model):
        model(input_ids=ids, use_cache=False)
