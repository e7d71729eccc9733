"""Best-fit packing: documents stay whole where they fit into a block.

Best-fit decreasing ("Fewer Truncations Improve Language Modeling", arXiv 2404.10830): the longest piece first, each
into the block with the least room that takes it. Pieces of one length are alike, and so are blocks with the same room,
so they are placed in groups: the work grows with the number of lengths, not of documents.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .packing import Chain, Packing, Piece, Stream, starts_in

PADDING = 0.01  # most of all places that stay empty where more than a block's worth of documents is there
_WINDOW_TOKENS = 2**28  # packed by themselves: bounds memory, and a block's documents lie near each other on disk
_CONTINUED = np.uint32(2**31)  # the bit of a piece's length that says so; lengths stay below 2**24


@dataclass(frozen=True)
class _Pieces:
    """Pieces of documents, as arrays `[pieces]`: where each begins in the stream, its tokens, whether it continues."""

    starts: np.ndarray
    tokens: np.ndarray
    continued: np.ndarray

    def take(self, index: np.ndarray) -> _Pieces:
        """Some of them."""
        return _Pieces(self.starts[index], self.tokens[index], self.continued[index])

    def places(self, bos: bool) -> np.ndarray:
        """`[pieces]` places that each takes in a block."""
        return self.tokens + (self.continued & bos)


@dataclass(frozen=True)
class _Window:
    """Packed blocks: `bounds` [blocks + 1] of their pieces, which begin at `base + starts`; 8 bytes a piece."""

    base: int
    starts: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray


class BestFit(Packing):
    """Documents kept whole where they fit.

    Attributes:
        cut: Cuts beyond those that documents longer than a block need, made so that padding stays below 1 %.
    """

    def __init__(self, windows: list[_Window], length: int, bos: bool, cut: int) -> None:
        self.length, self._windows, self.cut, self.joins = length, windows, cut, False
        self._first = np.cumsum([0, *(len(window.bounds) - 1 for window in windows)])
        lengths = [window.lengths for window in windows]
        self.tokens = sum(int((part & ~_CONTINUED).sum(dtype=np.int64)) for part in lengths)
        self.bos = sum(int((part >= _CONTINUED).sum()) for part in lengths) if bos else 0
        self.padding = len(self) * length - self.tokens - self.bos

    def __len__(self) -> int:
        return int(self._first[-1])

    def pieces(self, block: int) -> list[Piece]:
        """What a block holds, in order."""
        place = int(np.searchsorted(self._first, block, side="right")) - 1
        window, row = self._windows[place], block - int(self._first[place])
        inside = slice(int(window.bounds[row]), int(window.bounds[row + 1]))
        starts = window.base + window.starts[inside].astype(np.int64)
        lengths = window.lengths[inside]
        tokens = (lengths & ~_CONTINUED).astype(np.int64)
        continued = lengths >= _CONTINUED
        return list(map(Piece, starts.tolist(), (starts + tokens).tolist(), continued.tolist()))


def pack_best_fit(stream: Stream, runs: np.ndarray, length: int, bos: bool) -> BestFit:
    """Place the documents of `runs` in blocks, the padding below 1 %."""
    windows, cut = [], 0
    for starts, tokens in _documents(stream, runs):
        pieces = _cut_long(starts, tokens, length, bos)
        block = best_fit_decreasing(pieces.places(bos), length)
        pieces, block, more = _fill(pieces, block, length, bos)
        windows.append(_window(pieces, block))
        cut += more
    return BestFit(windows, length, bos, cut)


def _documents(stream: Stream, runs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`[documents]` starts and tokens of the documents in `runs`, in groups of about `_WINDOW_TOKENS` tokens."""
    held: list[np.ndarray] = []
    run_of: list[np.ndarray] = []
    size = 0
    for starts, run in starts_in(stream, runs):
        if not len(starts):
            continue
        held.append(starts)
        run_of.append(run)
        size = int(starts[-1] - held[0][0])
        if size >= _WINDOW_TOKENS:
            # The last document ends where the next one begins, which is not known yet.
            yield _lengths(np.concatenate(held), np.concatenate(run_of), runs, last=False)
            held, run_of = [starts[-1:]], [run[-1:]]
    if held:
        yield _lengths(np.concatenate(held), np.concatenate(run_of), runs, last=True)


def _lengths(starts: np.ndarray, run: np.ndarray, runs: np.ndarray, last: bool) -> tuple[np.ndarray, np.ndarray]:
    following = np.append(starts[1:], runs[run[-1], 1])
    tokens = np.minimum(following, runs[run, 1]) - starts
    return (starts, tokens) if last else (starts[:-1], tokens[:-1])


def _cut_long(starts: np.ndarray, tokens: np.ndarray, length: int, bos: bool) -> _Pieces:
    """Documents of more than a block cut into pieces that fill one, and a rest."""
    step = length - bos
    count = np.maximum(1, 1 - (-(tokens - length) // step))
    document = np.repeat(np.arange(len(starts)), count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    offset = np.where(number == 0, 0, length + (number - 1) * step)
    size = np.minimum(tokens[document] - offset, np.where(number == 0, length, step))
    return _Pieces(starts[document] + offset, size, number > 0)


def best_fit_decreasing(places: np.ndarray, length: int) -> np.ndarray:
    """`[pieces]` the block of each piece, for the `places` [pieces] that each takes of a block's `length`."""
    order = np.argsort(-places, kind="stable")
    sizes, firsts = np.unique(-places[order], return_index=True)
    lasts = np.append(firsts[1:], len(order))
    block = np.empty(len(places), np.int64)
    rooms: list[int] = []  # of blocks that are not full, in order
    blocks: dict[int, list[np.ndarray]] = {}  # the blocks with each of these rooms, in stacks of arrays
    count = 0

    def put(room: int, which: np.ndarray) -> None:
        if room and len(which):
            if room not in blocks:
                bisect.insort(rooms, room)
                blocks[room] = []
            blocks[room].append(which)

    for size, first, last in zip((-sizes).tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        while first < last:
            place = bisect.bisect_left(rooms, size)
            if place == len(rooms):
                each = length // size
                new = -(-(last - first) // each)
                room, which = length, np.arange(count, count + new)
                count += new
            else:
                room = rooms[place]
                which = blocks[room].pop()
                if not blocks[room]:
                    del blocks[room], rooms[place]
                each = room // size
            # Best fit fills one block as long as it takes pieces of this size, then goes on to the next.
            full = min(len(which), (last - first) // each)
            block[order[first : first + full * each]] = np.repeat(which[:full], each)
            first += full * each
            put(room - each * size, which[:full])
            rest = which[full:]
            if first < last and len(rest):
                block[order[first:last]] = rest[0]
                put(room - (last - first) * size, rest[:1])
                first, rest = last, rest[1:]
            put(room, rest)
    return block


def _fill(pieces: _Pieces, block: np.ndarray, length: int, bos: bool) -> tuple[_Pieces, np.ndarray, int]:
    """Where too much is padding, the pieces of the emptiest blocks joined and cut; how many more cuts there are."""
    used = np.bincount(block, weights=pieces.places(bos)).astype(np.int64)
    # With less padding than a block has places, no other packing takes fewer blocks.
    if len(used) * length - used.sum() <= max(PADDING * len(used) * length, length - 1):
        return pieces, block, 0
    emptiest = np.argsort(used, kind="stable")
    joined = np.cumsum(used[emptiest])
    blocks = len(used) - np.arange(1, len(used) + 1) - (-joined // length)  # those left, and those of the joined
    padding = blocks * length - used.sum()
    chosen = np.flatnonzero(padding <= np.maximum(PADDING / 2 * blocks * length, length - 1))
    opened = np.zeros(len(used), bool)
    opened[emptiest[: chosen[0] + 1 if len(chosen) else len(used)]] = True
    inside = opened[block]
    kept = pieces.take(~inside)
    number = np.cumsum(~opened) - 1
    loose, loose_block = join(_reunited(pieces.take(inside)), length, bos)
    merged = _Pieces(
        np.concatenate([kept.starts, loose.starts]),
        np.concatenate([kept.tokens, loose.tokens]),
        np.concatenate([kept.continued, loose.continued]),
    )
    blocks_of = np.concatenate([number[block[~inside]], loose_block + int((~opened).sum())])
    return merged, blocks_of, max(0, int(merged.continued.sum()) - int(pieces.continued.sum()))


def join(pieces: _Pieces, length: int, bos: bool) -> tuple[_Pieces, np.ndarray]:
    """Pieces joined and cut every `length` places, and the block of each; every one that continues takes a bos."""
    places = pieces.places(bos)
    ends = np.cumsum(places)
    begins, total = ends - places, int(ends[-1])
    if bos:
        chain = Chain(length, length - 1)
        chain.add(begins)
        hits = chain.hits
        between = np.diff(np.append(hits, total)) - length
        more = np.maximum(-(-between // (length - 1)), 0)
        hit = np.repeat(np.arange(len(hits)), 1 + more)
        steps = np.arange(len(hit)) - np.repeat(np.cumsum(1 + more) - (1 + more), 1 + more)
        blocks = hits[hit] + np.where(steps == 0, 0, length + (steps - 1) * (length - 1))
    else:
        blocks = np.arange(0, total, length)
    begin = np.union1d(begins, blocks)
    end = np.append(begin[1:], total)
    piece = np.searchsorted(begins, begin, side="right") - 1
    offset = begin - begins[piece]
    own = pieces.continued[piece] & bos  # a bos of the piece's own takes its first place
    first = np.where(offset == 0, 0, offset - own)
    tokens = end - begin - ((offset == 0) & own)
    found = _Pieces(pieces.starts[piece] + first, tokens, pieces.continued[piece] | (offset > 0))
    some = tokens > 0  # a block may end with a bos of a piece that goes on in the next one, with a bos there
    return found.take(some), (np.searchsorted(blocks, begin, side="right") - 1)[some]


def _reunited(pieces: _Pieces) -> _Pieces:
    """Pieces, in their order in the stream, with those that follow each other in one document made one."""
    follows = pieces.continued.copy()
    follows[1:] &= pieces.starts[1:] == pieces.starts[:-1] + pieces.tokens[:-1]
    follows[:1] = False
    first = np.flatnonzero(~follows)
    return _Pieces(pieces.starts[first], np.add.reduceat(pieces.tokens, first), pieces.continued[first])


def _window(pieces: _Pieces, block: np.ndarray) -> _Window:
    order = np.lexsort((pieces.starts, block))
    base = int(pieces.starts.min())
    starts = (pieces.starts[order] - base).astype(np.uint32)
    lengths = pieces.tokens[order].astype(np.uint32) | (pieces.continued[order] * _CONTINUED)
    bounds = np.searchsorted(block[order], np.arange(int(block.max()) + 2)).astype(np.uint32)
    return _Window(base, starts, lengths.astype(np.uint32), bounds)
