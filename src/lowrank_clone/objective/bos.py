"""What a bos before each block is worth to a model: its loss on the same tokens with and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .batch import IGNORED
from .evaluate import language_loss

MATTERS = 0.1  # nats per token from which on a model is another one without its bos


@dataclass(frozen=True)
class BosGap:
    """Mean next-token losses in nats per token over the same `tokens`."""

    with_bos: float
    without: float
    tokens: int

    @property
    def matters(self) -> bool:
        """Whether they differ by more than 0.1 nats per token."""
        return abs(self.without - self.with_bos) > MATTERS

    def __str__(self) -> str:
        return (
            f"{self.with_bos:.3f} nats per token with a bos before each block and {self.without:.3f} without, on the "
            f"same {self.tokens:,} tokens"
        )


def bos_gap(model: PreTrainedModel, blocks: Sequence[Any], bos: int, batch_size: int = 4) -> BosGap:
    """The model's loss on these blocks, each once with one bos before it and once with none.

    Blocks that begin with it already are measured without it too; before others it is put, and their last token left
    out. The first token after the bos counts in neither loss, since without a bos nothing predicts it.

    Args:
        blocks: Rows of one length, as `language_loss` takes them; a few thousand tokens are enough.
        bos: The tokenizer's `bos_token_id`.

    Raises:
        InputError: There is no token to predict, or blocks have several lengths.
    """
    given = [{name: torch.as_tensor(value) for name, value in blocks[i].items()} for i in range(len(blocks))]
    plain = [_body(row, bos) for row in given]
    begun = [_with_bos(row, bos) for row in plain]
    found = language_loss(model, begun, batch_size)
    return BosGap(found.loss, language_loss(model, plain, batch_size).loss, found.tokens)


def _body(row: dict[str, Tensor], bos: int) -> dict[str, Tensor]:
    """A row without the bos at its beginning, or without its last token."""
    begins = int(row["input_ids"][0]) == bos
    body = {name: values[1:] if begins else values[:-1] for name, values in row.items()}
    if begins and "position_ids" in body:
        body["position_ids"] = body["position_ids"] - _first_document(body["position_ids"]).long()
    return body


def _with_bos(body: dict[str, Tensor], bos: int) -> dict[str, Tensor]:
    ids = body["input_ids"]
    labels = body.get("labels", ids).clone()
    labels[0] = IGNORED
    row = {"input_ids": _before(ids, bos), "labels": _before(labels, IGNORED)}
    if "attention_mask" in body:
        row["attention_mask"] = _before(body["attention_mask"], 1)
    if "position_ids" in body:
        positions = body["position_ids"]
        row["position_ids"] = _before(positions + _first_document(positions).long(), 0)
    return row


def _before(values: Tensor, first: int) -> Tensor:
    return torch.cat([values.new_tensor([first]), values])


def _first_document(positions: Tensor) -> Tensor:
    """[length] bool: the places of a row up to where its positions begin again."""
    return torch.cat([torch.ones(1, dtype=torch.bool), (positions.diff() == 1).cumprod(0).bool()])
