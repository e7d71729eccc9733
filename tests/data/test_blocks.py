"""Rows of packed blocks: ids, labels, padding and positions, each against what the documents say."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_shards import small_source

from lowrank_clone.data.blocks import PackedBlocks
from lowrank_clone.data.packing import pack
from lowrank_clone.objective.tokens import counted

BOS = 7


def documents(seed: int, bos: bool, count: int = 12) -> list[list[int]]:
    """Random ones; every token differs from all others, so that its place is known."""
    random = np.random.default_rng(seed)
    ids = iter(range(100, 1000))
    return [[BOS] * bos + [next(ids) for _ in range(int(random.integers(1, 30)))] for _ in range(count)]


def blocks(folder: Path, texts: list[list[int]], *, how: str = "contiguous", length: int = 10, **given: Any) -> Any:
    source = small_source(folder, texts, shards=3, masked=given.pop("masked", None))
    packed = pack(source, np.array([[0, source.tokens]]), length, given.get("bos") is not None, how)
    return PackedBlocks([(source, packed)], np.arange(len(packed)), length=length, **given)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("how", ["contiguous", "best_fit"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_rows(tmp_path: Path, seed: int, bos: int | None, how: str, document_mask: bool) -> None:
    texts = documents(seed, bos is not None)
    rows = blocks(tmp_path, texts, how=how, bos=bos, document_mask=document_mask, pad_id=3)
    place = {token: (d, i) for d, text in enumerate(texts) for i, token in enumerate(text) if token != BOS}
    before = {text[i + 1]: text[i] for text in texts for i in range(len(text) - 1)}
    seen: list[int] = []
    for row in rows:
        ids = row["input_ids"]
        present = row.get("attention_mask", torch.ones(10, dtype=torch.long)).bool()
        size = int(present.sum())
        assert present.tolist() == [True] * size + [False] * (10 - size)
        assert ids[size:].tolist() == [3] * (10 - size)
        real = [token for token in ids[:size].tolist() if token != BOS]
        seen += real
        assert bos is None or ids[0] == bos
        labels = row.get("labels", ids)
        assert ((labels == ids) | (labels == -100)).all()
        assert "labels" not in row or (labels == -100).any()
        assert ("position_ids" in row) == document_mask
        optional = (row.get(name) for name in ("attention_mask", "labels", "position_ids"))
        targets, _ = counted(ids[None], *(None if value is None else value[None] for value in optional))
        for i in range(9):
            if (target := int(targets[i])) not in (-100, BOS):
                continued = place[target][1] > bos_places(bos)
                assert (int(ids[i]) == before[target]) if continued else not document_mask or i == 0 or bos is not None
        if document_mask:
            check_positions(row["position_ids"].tolist(), ids.tolist(), size, place, bos)
    assert sorted(seen) == sorted(place)
    if how == "contiguous":
        assert seen == sorted(seen)


def bos_places(bos: int | None) -> int:
    return 0 if bos is None else 1


def check_positions(positions: list[int], ids: list[int], size: int, place: dict, bos: int | None) -> None:
    """Positions begin again exactly where another document does, at its bos if there is one, and at padding."""
    for i, position in enumerate(positions):
        if i == 0 or i == size:
            assert position == 0
        elif i > size:
            assert position == positions[i - 1] + 1
        elif bos is not None:
            assert (position == 0) == (ids[i] == BOS)
        else:
            together = place[ids[i]] == (place[ids[i - 1]][0], place[ids[i - 1]][1] + 1)
            assert position == (positions[i - 1] + 1 if together else 0)


def test_a_bos_of_its_own_teaches_nothing(tmp_path: Path) -> None:
    rows = blocks(tmp_path, [[BOS, *range(100, 115)], [BOS, 200]], bos=BOS, length=8)
    assert rows[0]["input_ids"].tolist() == [BOS, *range(100, 107)]
    assert set(rows[0]) == {"input_ids"}
    assert rows[1]["input_ids"].tolist() == [BOS, *range(107, 114)]
    assert rows[1]["labels"].tolist() == [-100, -100, *range(108, 114)]
    assert rows[2]["input_ids"].tolist() == [BOS, 114, BOS, 200, 0, 0, 0, 0]
    assert rows[2]["labels"].tolist() == [-100, -100, BOS, 200, *[-100] * 4]
    assert rows[2]["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_what_the_assistant_does_not_say_is_left_out(tmp_path: Path) -> None:
    texts = [list(range(100, 112)), list(range(200, 205))]
    rows = blocks(tmp_path, texts, masked=[[(0, 5), (8, 12)], [(0, 5)]], length=6)
    assert [row["labels"].tolist() for row in rows] == [
        [*[-100] * 5, 105],
        [106, 107, *[-100] * 4],
        [-100] * 6,
    ]


def test_parts_orders_and_pickles(tmp_path: Path) -> None:
    first, second = (small_source(tmp_path / name, [list(range(at, at + 8))]) for name, at in (("a", 10), ("b", 50)))
    parts = [(source, pack(source, np.array([[0, 8]]), 4, False, "contiguous")) for source in (first, second)]
    rows = pickle.loads(pickle.dumps(PackedBlocks(parts, np.array([2, 0, 3]), length=4)))
    assert [row["input_ids"].tolist() for row in rows] == [[50, 51, 52, 53], [10, 11, 12, 13], [54, 55, 56, 57]]
    assert rows[-1]["input_ids"].dtype == torch.int64
    assert [row["input_ids"][0].item() for row in rows[1:]] == [10, 54]
    assert [row["input_ids"][0].item() for row in rows.select([2, 0])] == [54, 50]
    assert [row["input_ids"][0].item() for row in rows.select(range(2, -1, -2))] == [54, 50]
    with pytest.raises(IndexError):
        rows[3]
