"""Which documents of the shards are on which side: held out by what they say, equal ones dropped. No copy of the text.

Everything here is arithmetic over two arrays of a source: where its documents end, and the hashes of their texts. What
comes out are *runs*, `[runs, 2]` int64: stretches of the stream of whole documents, of which neighbours are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import InputError
from ..mixing import keyed
from .check import one_document
from .config import DataConfig
from .report import Side


class Documents(Protocol):
    """What is looked at of a source: a `TokenSource` is one."""

    def ends(self) -> np.ndarray:
        """`[documents]` int64: the position in the stream after each document."""

    def hashes(self) -> np.ndarray:
        """`[documents]` uint64: of each document's text."""


@dataclass(frozen=True)
class Chosen:
    """The documents of one source on one side.

    runs: `[runs, 2]` int64 stretches of the stream. equal: Documents that are left out since an equal one was before
    them, in this source or another. elsewhere: Documents of a training source that are left out since they, or nearly
    the same ones, are for validation in another source.
    """

    runs: np.ndarray
    documents: int
    tokens: int
    equal: int = 0
    elsewhere: int = 0


@dataclass(frozen=True)
class View:
    """What is read of every source, in their order; a source of one side only has nothing on the other."""

    train: tuple[Chosen, ...]
    validation: tuple[Chosen, ...]

    def of(self, side: Side) -> tuple[Chosen, ...]:
        """The sources on one side."""
        return self.train if side == "train" else self.validation


def choose(
    sources: Sequence[tuple[str, str, Documents]],
    config: DataConfig,
    first_of: Mapping[int, np.ndarray] | None = None,
) -> View:
    """Deal the documents of all sources out to the two sides.

    A document is held out, or not, by a hash of its text and the seed: equal documents are on the same side whatever
    their sources and their order. Where validation has sources of its own, training leaves out what is equal to a
    document of theirs. With `deduplicate`, the first one of equal documents stays, in the order of the sources.

    Args:
        sources: Key, path and documents of each, those for training first.
        first_of: By source, `[documents]` uint64: the hash that a document counts as instead of its own, where
            documents that are nearly equal count as equal.

    Raises:
        InputError: A source has too few documents or tokens for both sides, or none that is not elsewhere too.
    """
    trained = len(config.sources)
    lengths, hashes = [], []
    for index, (_, _, source) in enumerate(sources):
        lengths.append(np.diff(source.ends(), prepend=0))
        hashes.append(source.hashes() if first_of is None else first_of[index])
    # Sources for validation come first: what is in them is not for training.
    order = [*range(trained, len(sources)), *range(trained)]
    kept = _without_equal(hashes, order) if config.deduplicate else [np.ones(len(one), bool) for one in hashes]
    if trained < len(sources):
        held = np.unique(np.concatenate([hashes[i] for i in range(trained, len(sources))]))
    else:
        found = [np.empty(0, np.uint64)]
        for index, (key, path, _) in enumerate(sources):
            mine = kept[index]
            found.append(_held_out(lengths[index][mine], hashes[index][mine], config, f"{key}.", path))
        held = np.unique(np.concatenate(found))
    train, validation = [], []
    for index, (key, path, _) in enumerate(sources):
        inside = _among(hashes[index], held)
        if index < trained:
            one = _chosen(lengths[index], kept[index], ~inside, elsewhere=trained < len(sources))
            if one.documents == 0:
                raise InputError(_nothing_left(key, path, one))
            train.append(one)
        if index >= trained or trained == len(sources):
            validation.append(_chosen(lengths[index], kept[index], inside))
    return View(tuple(train), tuple(validation))


def hold_out(lengths: np.ndarray, hashes: np.ndarray, fraction: float, block: int, seed: int) -> np.ndarray:
    """Which texts go to validation: whole ones in the order of a keyed hash, until they have their share.

    A document that overshoots the share by a quarter is passed over while others do; where none does, one of the
    shorter half of the rest is taken. So the share is met closely where documents are short, and where they are as
    long as books the training side loses no more than it must.

    Args:
        lengths: `[documents]` tokens of each, all above 0.
        hashes: `[documents]` uint64 of their texts; at least two are different.
        fraction: Share of all tokens.
        block: Tokens of one block, which are held out at least.

    Returns:
        `[held]` uint64, the hashes of what is held out: at least one, and not all.
    """
    texts, which = np.unique(hashes, return_inverse=True)
    sizes = np.bincount(which, lengths).astype(np.int64)  # equal documents go together
    order = np.argsort(keyed(texts, seed), kind="stable")
    target, held, taken = max(fraction * int(lengths.sum()), block), 0, np.zeros(len(texts), bool)
    for text in order.tolist():
        if held >= target:
            break
        if held + sizes[text] <= 1.25 * target:
            taken[text] = True
            held += int(sizes[text])
    while held < target or not taken.any():
        rest = order[~taken[order]]
        if len(rest) < 2:
            break
        shorter = rest[sizes[rest] <= np.median(sizes[rest])]
        taken[shorter[0]] = True
        held += int(sizes[shorter[0]])
    if taken.all():
        taken[order[-1]] = False
    return np.asarray(texts[taken])


def _held_out(lengths: np.ndarray, hashes: np.ndarray, config: DataConfig, key: str, path: str) -> np.ndarray:
    """What `hold_out` chooses of a source, if there is anything to choose from."""
    assert isinstance(config.validation, float)
    block, total = config.sequence_length, int(lengths.sum())
    if len(lengths) == 0:
        return np.empty(0, np.uint64)  # all are equal to others elsewhere, which is told where that is counted
    if len(lengths) == 1:
        raise InputError(f"{key}{one_document(path)}")
    if len(np.unique(hashes)) == 1:
        raise InputError(
            f"{key}path: `{path}` is the same document {len(lengths):,} times, and equal documents are never on both "
            "sides of the hold-out; give other text, or give data.validation a source of its own"
        )
    if total < 2 * block:
        raise InputError(
            f"{key}path: `{path}` has {total:,} tokens, but a block for training and one for validation need "
            f"{2 * block:,}; give more text, or lower data.sequence_length to {max(2, total // 4):,} or less"
        )
    return hold_out(lengths, hashes, config.validation, block, config.seed)


def _without_equal(hashes: Sequence[np.ndarray], order: Sequence[int]) -> list[np.ndarray]:
    """Of each source, `[documents]` bool: whether a document is the first of its text."""
    joined = np.concatenate([np.empty(0, np.uint64), *(hashes[index] for index in order)])
    first = np.zeros(len(joined), bool)
    first[np.unique(joined, return_index=True)[1]] = True
    kept: list[np.ndarray] = [first] * len(hashes)
    start = 0
    for index in order:
        kept[index] = first[start : start + len(hashes[index])]
        start += len(hashes[index])
    return kept


def _among(hashes: np.ndarray, sorted_hashes: np.ndarray) -> np.ndarray:
    """`[documents]` bool: whether a hash is one of some sorted ones."""
    if len(sorted_hashes) == 0:
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return np.asarray(sorted_hashes[place] == hashes)


def _chosen(lengths: np.ndarray, kept: np.ndarray, side: np.ndarray, elsewhere: bool = False) -> Chosen:
    """The documents that are kept and on a side."""
    mask = kept & side
    borders = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Chosen(
        runs=starts[borders].astype(np.int64),
        documents=int(mask.sum()),
        tokens=int(lengths[mask].sum()),
        equal=int((~kept & side).sum()),
        elsewhere=int((~side).sum()) if elsewhere else 0,
    )


def _nothing_left(key: str, path: str, one: Chosen) -> str:
    what = f"{one.equal:,} are equal to others, {one.elsewhere:,} are in data.validation"
    return (
        f"{key}.path: nothing of `{path}` is left to train on ({what}, the others are held out); remove the source, or "
        "set data.deduplicate: false"
    )
