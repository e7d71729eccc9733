"""What a bos is worth: both losses on the same tokens, whether blocks have it or not."""

from __future__ import annotations

import pytest
import torch
from tiny import batch, tiny_model
from torch.nn import functional as F

from lowrank_clone.objective.bos import BosGap, bos_gap

BOS = 1


@torch.no_grad()
def losses_one_by_one(rows: list[list[int]]) -> tuple[float, float]:
    """The oracle: cross-entropy of whole logits on the tokens of each text but its first, with bos and without."""
    model, with_bos, without = tiny_model("llama"), [], []
    for row in rows:
        for start, found in (([BOS], with_bos), ([], without)):
            ids = torch.tensor([[*start, *row]])
            logits = model(ids).logits[0, len(start) : -1]
            found.append(F.cross_entropy(logits, torch.tensor(row[1:]), reduction="none"))
    return float(torch.cat(with_bos).mean()), float(torch.cat(without).mean())


@pytest.mark.parametrize("begins", [False, True])
def test_both_losses_are_on_the_same_tokens(begins: bool) -> None:
    texts = batch(3).tolist()
    blocks = [{"input_ids": torch.tensor([BOS, *text] if begins else [*text, 9])} for text in texts]
    gap = bos_gap(tiny_model("llama"), blocks, BOS, 2)
    assert (gap.with_bos, gap.without) == pytest.approx(losses_one_by_one(texts), rel=1e-5)
    assert gap.tokens == 3 * 11


def test_documents_and_masks_stay_what_they_are() -> None:
    first, second = batch(2)[:, :6].tolist()
    row = {
        "input_ids": torch.tensor([BOS, *first, BOS, *second, 0, 0]),
        "labels": torch.tensor([-100, *first, -100, *second, -100, -100]),
        "attention_mask": torch.tensor([1] * 14 + [0] * 2),
        "position_ids": torch.tensor([*range(7), *range(7), 0, 1]),
    }
    gap = bos_gap(tiny_model("llama"), [row], BOS)
    # The second document keeps its bos in both: six targets, beside the five of the first.
    assert gap.tokens == 11
    with_bos, without = losses_one_by_one([first])
    assert 11 * (gap.without - gap.with_bos) == pytest.approx(5 * (without - with_bos), rel=1e-4)


def test_what_matters() -> None:
    assert BosGap(2.83, 4.31, 100).matters and not BosGap(2.83, 2.9, 100).matters
    assert "2.830 nats per token with a bos before each block and 4.310 without" in str(BosGap(2.83, 4.31, 100))
