"""Which stretches of a stream of documents make each block, by arithmetic over memory maps: no copy of the text.

A block holds `length` tokens. Where the tokenizer puts a bos before a text, documents begin with it in the stream, and
what follows a cut is given one: such a *continued* piece takes one place more, for its bos, at which no token of the
stream stands.

    contiguous   documents are joined; a document's rest opens the next block; the last block is padded
    best_fit     documents stay whole where they fit into a block (best-fit decreasing over their lengths); what stays
                 free is padded, up to 1 % of all tokens, beyond which documents are cut to fill it (`best_fit.py`)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

_WINDOW = 2**26  # positions of the stream whose documents are looked at together; bounds memory


class Stream(Protocol):
    """What packing reads of a source: where its documents begin."""

    @property
    def tokens(self) -> int:
        """Of all documents."""

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """`[starts]` int64 positions in `start` to `stop` at which a document begins, in order."""


class Piece(NamedTuple):
    """A stretch of the stream in a block: one document or a part of one, or whole documents that follow each other."""

    start: int
    stop: int
    continued: bool
    """Whether it begins inside a document, so that a bos has to be put before it."""


def pack(stream: Stream, runs: np.ndarray, length: int, bos: bool, packing: str) -> Packing:
    """The blocks of one source on one side.

    Args:
        runs: `[runs, 2]` int64 stretches of the stream: whole documents, in order.
        length: Tokens of a block, at least 2.
        bos: Whether the tokenizer puts a bos before a text, so that what follows a cut needs one.
        packing: `contiguous` or `best_fit`.
    """
    from .best_fit import pack_best_fit

    assert packing in ("contiguous", "best_fit"), packing
    return (pack_contiguous if packing == "contiguous" else pack_best_fit)(stream, runs, length, bos)


class Packing(ABC):
    """The blocks of one source on one side. Picklable.

    Attributes:
        length: Tokens of a block.
        tokens: Of the stream, each in exactly one block.
        padding: Places that hold no token in all blocks together.
        bos: Places that hold a bos which is not in the stream.
        joins: Whether a piece may hold several documents.
    """

    length: int
    tokens: int
    padding: int
    bos: int
    joins: bool

    @abstractmethod
    def __len__(self) -> int:
        """How many blocks there are."""

    @abstractmethod
    def pieces(self, block: int) -> list[Piece]:
        """What a block holds, in order."""


class Contiguous(Packing):
    """Documents joined and cut every `length` tokens.

    Args:
        runs: `[runs, 2]` int64, stretches of the stream that are joined: whole documents, in order.
        hits: `[hits]` int64, which positions of the joined runs begin both a block and a document, in order.
        bos: Whether a block that begins inside a document begins with a bos of its own.
    """

    def __init__(self, runs: np.ndarray, length: int, hits: np.ndarray, bos: bool) -> None:
        self.length, self._runs, self._step, self.joins = length, runs, length - bos, True
        self._offsets = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])])
        self.tokens = int(self._offsets[-1])
        # From a hit on, blocks go on in steps; between two hits they do so without a remainder.
        between = np.diff(np.append(hits, self.tokens)) - length
        blocks = 1 + np.maximum(-(-between // self._step), 0)
        self._hits, self._first = hits, np.concatenate([[0], np.cumsum(blocks)])
        self._blocks = int(self._first[-1])
        self.bos = (self._blocks - len(hits)) * int(bos)
        self.padding = self._blocks * length - self.tokens - self.bos

    def __len__(self) -> int:
        return self._blocks

    def pieces(self, block: int) -> list[Piece]:
        """What a block holds, in order."""
        start, stop = self._start(block), self._start(block + 1)
        first, last = np.searchsorted(self._offsets, [start, stop - 1], side="right") - 1
        pieces: list[Piece] = []
        for run in range(first, last + 1):
            shift = int(self._runs[run, 0] - self._offsets[run])
            inside = max(start, int(self._offsets[run])), min(stop, int(self._offsets[run + 1]))
            continued = not pieces and not self._is_hit(block)
            pieces.append(Piece(inside[0] + shift, inside[1] + shift, continued))
        return pieces

    def _start(self, block: int) -> int:
        """The position in the joined runs at which a block begins."""
        if block >= self._blocks:
            return self.tokens
        hit = int(np.searchsorted(self._first, block, side="right")) - 1
        steps = block - int(self._first[hit])
        return int(self._hits[hit]) + (self.length + (steps - 1) * self._step if steps else 0)

    def _is_hit(self, block: int) -> bool:
        return bool(self._first[np.searchsorted(self._first, block, side="right") - 1] == block)


def pack_contiguous(stream: Stream, runs: np.ndarray, length: int, bos: bool) -> Contiguous:
    """Join the documents of `runs` and cut them into blocks."""
    chain = Chain(length, length - bos)
    if not bos:  # all blocks are alike
        return Contiguous(runs, length, np.zeros(min(1, len(runs)), np.int64), bos)
    offsets = np.cumsum(runs[:, 1] - runs[:, 0]) - (runs[:, 1] - runs[:, 0])
    for starts, run in starts_in(stream, runs):
        chain.add(starts - runs[run, 0] + offsets[run])
    return Contiguous(runs, length, chain.hits, bos)


def starts_in(stream: Stream, runs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`[starts]` where documents begin in the stream, of those in `runs`, and `[starts]` in which run each is."""
    if not len(runs):
        return
    last = int(runs[-1, 1])
    for window in range(int(runs[0, 0]), last, _WINDOW):
        starts = stream.document_starts(window, min(window + _WINDOW, last))
        run = np.searchsorted(runs[:, 0], starts, side="right") - 1
        inside = (run >= 0) & (starts < runs[run, 1])
        yield starts[inside], run[inside]


class Chain:
    """The blocks that begin with a document, where a block holds `length` tokens if it does and `step` if not.

    Where the next block begins depends on whether this one begins with a document, so blocks are found one after the
    other. Between two that do, they go on in steps: the next document that begins a block is the first one beyond with
    the same remainder, which one sorted array of (remainder, quotient) answers for all documents of a window at once.
    """

    def __init__(self, length: int, step: int) -> None:
        self._length, self._step, self._next = length, step, 0
        self._hits: list[np.ndarray] = []

    def add(self, starts: np.ndarray) -> None:
        """Go on through `[starts]` int64, the positions of the next documents, in order."""
        if not len(starts):
            return
        origin, most = int(starts[0]), int(starts[-1] - starts[0]) // self._step + 1

        def keys(positions: np.ndarray) -> np.ndarray:
            return (positions % self._step) * (most + 1) + np.minimum((positions - origin) // self._step, most)

        sorted_keys = keys(starts)
        order = np.argsort(sorted_keys, kind="stable")
        sorted_keys = sorted_keys[order]

        def first(positions: np.ndarray) -> np.ndarray:
            wanted = keys(positions)
            place = np.searchsorted(sorted_keys, wanted)
            found = sorted_keys[np.minimum(place, len(order) - 1)]
            same = (place < len(order)) & (found // (most + 1) == positions % self._step)
            return np.where(same, order[np.minimum(place, len(order) - 1)], -1)

        jumps = np.empty(len(order), np.int64)
        jumps[order] = first(starts[order] + self._length)  # in their order the search goes through memory once
        following = memoryview(jumps.data)
        hit = int(first(np.array([self._place(origin)]))[0])
        hits = []
        while hit >= 0:
            hits.append(hit)
            hit = following[hit]
        if hits:
            self._hits.append(starts[np.array(hits)])
            self._next = int(self._hits[-1][-1]) + self._length

    def _place(self, origin: int) -> int:
        """Where the first block at or after a position begins, if none before it begins with a document."""
        return self._next + max(0, -(-(origin - self._next) // self._step)) * self._step

    @property
    def hits(self) -> np.ndarray:
        """`[hits]` int64 positions of the documents that begin a block, in order."""
        return np.concatenate([np.empty(0, np.int64), *self._hits])
