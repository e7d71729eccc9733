"""Which documents are on which side: by what they say alone, each once, and what is dropped is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.view import View, choose, hold_out
from lowrank_clone.errors import InputError


@dataclass
class Docs:
    """Documents as (length, hash)."""

    listed: list[tuple[int, int]]

    def ends(self) -> np.ndarray:
        return np.cumsum([length for length, _ in self.listed]).astype(np.int64)

    def hashes(self) -> np.ndarray:
        return np.array([value for _, value in self.listed], np.uint64)

    def inside(self, runs: np.ndarray) -> list[int]:
        """Hashes of the documents that runs hold, which must be whole ones."""
        ends = self.ends()
        starts = ends - np.array([length for length, _ in self.listed])
        assert np.isin(runs[:, 0], starts).all() and np.isin(runs[:, 1], ends).all()
        assert (runs[:, 0] < runs[:, 1]).all() and (runs[1:, 0] > runs[:-1, 1]).all()  # neighbours are one run
        found = [np.flatnonzero((starts >= start) & (ends <= stop)) for start, stop in runs.tolist()]
        return [self.listed[int(i)][1] for i in np.concatenate([np.empty(0, int), *found])]


def random_docs(seed: int, count: int = 300, texts: int = 10_000) -> Docs:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, texts, count)
    return Docs([(int(value) % 37 + 1, int(value) * 7919) for value in values])


def view(*sources: Docs, validation: Any = 0.1, length: int = 16, **options: Any) -> View:
    trained = len(sources) - (len(validation) if isinstance(validation, list) else 0)
    config = DataConfig(
        sources=[SourceConfig(path=f"s{i}") for i in range(trained)],
        validation=validation,
        sequence_length=length,
        **options,
    )
    keys = [f"data.sources.{i}" for i in range(trained)] + [f"data.validation.{i}" for i in range(len(sources))]
    return choose([(keys[i], f"s{i}", one) for i, one in enumerate(sources)], config)


def texts_of(found: View, side: Any, sources: tuple[Docs, ...]) -> list[list[int]]:
    return [docs.inside(one.runs) for docs, one in zip(sources, found.of(side), strict=True)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("deduplicate", [False, True])
def test_no_text_is_on_both_sides_and_none_is_lost(seed: int, deduplicate: bool) -> None:
    sources = (random_docs(seed, texts=400), random_docs(seed + 10, texts=400), random_docs(seed + 20, 40))
    found = view(*sources, deduplicate=deduplicate)
    train, held = texts_of(found, "train", sources), texts_of(found, "validation", sources)
    assert not {text for one in train for text in one} & {text for one in held for text in one}
    everything = sorted(text for docs in sources for _, text in docs.listed)
    given = sorted(text for one in (*train, *held) for text in one)
    assert given == (sorted(set(everything)) if deduplicate else everything)
    for side in ("train", "validation"):
        for docs, one in zip(sources, found.of(side), strict=True):
            assert one.documents == len(docs.inside(one.runs))
            assert one.tokens == int((one.runs[:, 1] - one.runs[:, 0]).sum())
    assert sum(one.equal for one in (*found.train, *found.validation)) == len(everything) - len(given)


def test_the_side_of_a_text_does_not_depend_on_where_it_stands() -> None:
    docs = random_docs(3)
    backwards = Docs(docs.listed[::-1])
    held = set(docs.inside(view(docs).validation[0].runs))
    assert held == set(backwards.inside(view(backwards).validation[0].runs))
    assert held != set(docs.inside(view(docs, seed=1).validation[0].runs))
    other = random_docs(8)
    found = view(other, docs)
    assert held <= set(other.inside(found.validation[0].runs)) | set(docs.inside(found.validation[1].runs))


def test_the_first_of_equal_documents_stays() -> None:
    first, second = Docs([(5, 1), (5, 2), (5, 1)]), Docs([(5, 2), (9, 3), (9, 4), (9, 3)])
    found = view(first, second, Docs([(7, 9)]), validation=[SourceConfig(path="v")], deduplicate=True)
    assert texts_of(found, "train", (first, second)) == [[1, 2], [3, 4]]
    assert [one.equal for one in found.train] == [1, 2]


def test_what_is_validated_on_is_not_trained_on() -> None:
    train, held = Docs([(5, 1), (6, 2), (7, 3)]), Docs([(6, 2), (8, 8), (6, 2)])
    found = view(train, held, validation=[SourceConfig(path="v")])
    assert train.inside(found.train[0].runs) == [1, 3] and found.train[0].elsewhere == 1
    assert held.inside(found.validation[0].runs) == [2, 8, 2] and len(found.validation) == 1
    with pytest.raises(InputError, match=r"data.sources.0.path: nothing of `s0` is left .* 1 are in data.validation"):
        view(Docs([(6, 2)]), held, validation=[SourceConfig(path="v")])


def test_a_source_that_repeats_another_is_refused() -> None:
    docs = random_docs(1)
    with pytest.raises(InputError, match=r"data.sources.1.path: nothing of `s1` is left to train on"):
        view(docs, docs, deduplicate=True)
    with pytest.raises(InputError, match="is the same document 3 times, and equal documents are never on both sides"):
        view(Docs([(40, 1)] * 3))
    with pytest.raises(InputError, match=r"data.sources.0.path: `s0` is one document"):
        view(Docs([(40, 1)]))
    with pytest.raises(InputError, match=r"has 20 tokens, but a block for training and one for validation need 32"):
        view(Docs([(10, 1), (10, 2)]))


def held_of(lengths: Any, fraction: float, block: int, seed: int) -> np.ndarray:
    """`[documents]` bool of documents that all are different."""
    hashes = np.arange(len(lengths), dtype=np.uint64)
    return np.isin(hashes, hold_out(np.array(lengths), hashes, fraction, block, seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_one_of_tokens(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 500, 1000)
    assert 0.1 <= lengths[held_of(lengths, 0.1, 256, seed)].sum() / lengths.sum() <= 0.126


@pytest.mark.parametrize("seed", range(5))
def test_long_documents_fill_at_least_a_block(seed: int) -> None:
    """Forty-two plays, one per cent of which is less than any: one of the shorter ones is held out, not the longest."""
    lengths = np.random.default_rng(1).integers(20_000, 60_000, 42)
    held = held_of(lengths, 0.01, 2048, seed)
    assert held.sum() == 1 and lengths[held].sum() <= np.median(lengths)
    assert held_of([300] * 42, 0.01, 2048, seed).sum() == 7  # 7 x 300 tokens are the first to fill a block


@pytest.mark.parametrize("lengths", [[5, 5], [1000, 3], [7, 7], [3, 1000, 1000]])
def test_both_sides_get_a_document(lengths: list[int]) -> None:
    for seed in range(5):
        held = held_of(lengths, 0.5, 2, seed)
        assert held.any() and not held.all()


def test_equal_documents_are_held_out_together() -> None:
    lengths, hashes = np.full(100, 10), np.arange(100, dtype=np.uint64) % 10
    held = np.isin(hashes, hold_out(lengths, hashes, 0.2, 16, 0))
    assert held.sum() == 20 and len(np.unique(hashes[held])) == 2
