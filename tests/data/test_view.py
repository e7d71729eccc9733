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


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])
def test_the_share_is_met_closely(fraction: float) -> None:
    docs = random_docs(5, count=5000)
    lengths = np.array([length for length, _ in docs.listed])
    held = hold_out(lengths, docs.hashes(), fraction, 16, 0)
    share = lengths[np.isin(docs.hashes(), held)].sum() / lengths.sum()
    assert share == pytest.approx(fraction, rel=0.25)


def test_books_of_unequal_lengths_leave_enough_on_both_sides() -> None:
    lengths, hashes = np.array([100_000, 900, 70_000, 800_000]), np.array([4, 5, 6, 7], np.uint64)
    for seed in range(20):
        held = lengths[np.isin(hashes, hold_out(lengths, hashes, 0.01, 64, seed))].sum()
        assert 0 < held <= 170_900
