"""The language-model loss on blocks: cross-entropy of whole logits, in any batches; nothing to measure is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from torch.nn import functional as F

from lowrank_clone.errors import InputError
from lowrank_clone.objective.evaluate import language_loss

BLOCKS = [{"input_ids": row} for row in batch(5)]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("lists", [False, True])
def test_it_is_the_cross_entropy_of_whole_logits(size: int, lists: bool) -> None:
    model = tiny_model("gemma2")
    blocks = [{"input_ids": block["input_ids"].tolist()} for block in BLOCKS] if lists else BLOCKS
    with torch.no_grad():
        expected = F.cross_entropy(model(batch(5)).logits[:, :-1].flatten(0, 1), batch(5)[:, 1:].flatten())
    loss = language_loss(model, blocks, size)
    assert loss.loss == pytest.approx(float(expected), rel=1e-5) and loss.tokens == 55


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "got 0 without a token to predict"),
        ([{"input_ids": [5]}], "got 1 without a token to predict"),
        ([{"input_ids": [5, 6]}, {"input_ids": [5, 6, 7]}], "got 2 to 3 tokens, expected one length"),
    ],
)
def test_nothing_to_measure_is_refused(blocks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        language_loss(tiny_model("llama"), blocks)
