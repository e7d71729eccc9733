"""Packing: every token once and in order, whatever the documents; what each way to pack promises."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from lowrank_clone.data import best_fit, packing
from lowrank_clone.data.best_fit import BestFit, best_fit_decreasing
from lowrank_clone.data.packing import Packing, Piece, pack


class Lengths:
    """A stream of documents of these lengths."""

    def __init__(self, lengths: Sequence[int]) -> None:
        ends = np.cumsum(lengths)
        self.starts, self.tokens = ends - lengths, int(ends[-1])

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.starts, [start, stop])
        return self.starts[first:last]


def some_runs(stream: Lengths, kept: np.ndarray) -> np.ndarray:
    """The stretches of the documents that are kept."""
    ends = np.append(stream.starts[1:], stream.tokens)
    runs: list[list[int]] = []
    for start, end in zip(stream.starts[kept].tolist(), ends[kept].tolist(), strict=True):
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    return np.array(runs)


def joined(runs: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in runs])


def joined_and_cut(stream: Lengths, runs: np.ndarray, length: int, bos: bool) -> list[list[int]]:
    """The oracle of contiguous packing, token by token: the positions in each block, -1 for a bos of its own."""
    starts, blocks = set(stream.starts.tolist()), [[]]
    for position in joined(runs).tolist():
        if len(blocks[-1]) == length:
            blocks.append([])
        if bos and not blocks[-1] and position not in starts:
            blocks[-1].append(-1)
        blocks[-1].append(position)
    return blocks


def unpacked(packed: Packing, bos: bool) -> list[list[int]]:
    """The same of what was packed."""
    return [
        [
            p
            for piece in packed.pieces(i)
            for p in [-1] * (bos and piece.continued) + list(range(piece.start, piece.stop))
        ]
        for i in range(len(packed))
    ]


def best_fit_one_by_one(places: np.ndarray, length: int) -> list[int]:
    """The oracle of best-fit decreasing: the block of each piece; the fullest block that takes it."""
    rooms: list[int] = []
    blocks = [0] * len(places)
    for piece in sorted(range(len(places)), key=lambda i: -places[i]):
        fitting = [(room, block) for block, room in enumerate(rooms) if room >= places[piece]]
        block = min(fitting)[1] if fitting else len(rooms)
        rooms += [] if fitting else [length]
        rooms[block] -= int(places[piece])
        blocks[piece] = block
    return blocks


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("how", ["contiguous", "best_fit"])
def test_every_token_once_and_in_order(seed: int, bos: bool, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    count, length = int(random.integers(1, 60)), int(random.integers(2, 40))
    stream = Lengths(random.integers(1, int(random.integers(2, 80)), count).tolist())
    kept = random.random(count) < random.choice([0.3, 0.8, 1.0])
    kept[random.integers(count)] = True
    runs = some_runs(stream, kept)
    monkeypatch.setattr(packing, "_WINDOW", int(random.choice([7, 50, 2**26])))
    monkeypatch.setattr(best_fit, "_WINDOW_TOKENS", int(random.choice([30, 2**28])))
    packed = pickle.loads(pickle.dumps(pack(stream, runs, length, bos, how)))
    blocks = unpacked(packed, bos)
    pieces = [packed.pieces(i) for i in range(len(packed))]
    flat = [piece for block in pieces for piece in block]
    ordered = flat if how == "contiguous" else sorted(flat)
    assert np.array_equal(joined(np.array([piece[:2] for piece in ordered])), joined(runs))
    assert all(0 < len(block) <= length for block in blocks)
    assert packed.tokens == len(joined(runs))
    assert packed.bos == sum(position == -1 for block in blocks for position in block)
    assert packed.padding == len(blocks) * length - packed.tokens - packed.bos
    if how == "contiguous":
        assert blocks == joined_and_cut(stream, runs, length, bos)
    else:
        starts = set(stream.starts.tolist())
        assert [piece.continued for piece in flat] == [piece.start not in starts for piece in flat]


def test_best_fit_is_best_fit_decreasing() -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        length = int(random.integers(1, 50))
        places = random.integers(1, length + 1, int(random.integers(1, 80)))
        found = best_fit_decreasing(places, length)
        oracle = best_fit_one_by_one(places, length)
        # Blocks with the same room are alike, so what is equal is how full they are.
        assert sorted(np.bincount(found, weights=places)) == sorted(np.bincount(oracle, weights=places))


def text_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Lengths as documents of the web have them: from a few tokens to tens of thousands."""
    drawn = np.random.default_rng(seed).lognormal(5.8, 1.1, count)
    return np.clip(drawn, 2, 50_000).astype(int)


@pytest.mark.parametrize("bos", [False, True])
def test_padding_of_text_is_below_one_percent_and_no_document_is_cut(bos: bool) -> None:
    lengths = text_lengths(50_000)
    packed = pack(Lengths(lengths.tolist()), np.array([[0, lengths.sum()]]), 2048, bos, "best_fit")
    assert packed.padding < 0.001 * 2048 * len(packed)
    assert isinstance(packed, BestFit)
    assert packed.cut == 0
    pieces = sum(len(packed.pieces(i)) for i in range(len(packed)))
    step = 2048 - bos
    assert pieces == np.where(lengths <= 2048, 1, 1 - (-(lengths - 2048) // step)).sum()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("low", [0.4, 0.55])
def test_documents_that_fit_badly_are_cut_until_padding_is_below_one_percent(bos: bool, low: float) -> None:
    lengths = np.random.default_rng(0).integers(int(low * 512), int(0.7 * 512), 5000)
    packed = pack(Lengths(lengths.tolist()), np.array([[0, lengths.sum()]]), 512, bos, "best_fit")
    assert packed.padding < 0.01 * 512 * len(packed)
    assert isinstance(packed, BestFit)
    pieces = sum(len(packed.pieces(i)) for i in range(len(packed)))
    assert 0 < packed.cut == pieces - len(lengths) < len(lengths)
    assert packed.padding == len(packed) * 512 - lengths.sum() - packed.bos


def test_a_few_documents_stay_whole_where_no_packing_takes_fewer_blocks() -> None:
    packed = pack(Lengths([6, 7, 3, 2]), np.array([[0, 18]]), 10, False, "best_fit")
    assert [packed.pieces(i) for i in range(2)] == [
        [Piece(6, 13, False), Piece(13, 16, False)],
        [Piece(0, 6, False), Piece(16, 18, False)],
    ]


def test_a_stretch_without_documents() -> None:
    for how in ("contiguous", "best_fit"):
        packed = pack(Lengths([5]), np.empty((0, 2), np.int64), 4, True, how)
        assert (len(packed), packed.tokens, packed.padding) == (0, 0, 0)


def test_pieces_of_a_hole() -> None:
    packed = pack(Lengths([3, 3, 3]), np.array([[0, 3], [6, 9]]), 4, True, "contiguous")
    assert [packed.pieces(i) for i in range(2)] == [[Piece(0, 3, False), Piece(6, 7, False)], [Piece(7, 9, True)]]
    assert (packed.padding, packed.bos) == (1, 1)


def test_large_streams_take_little_memory() -> None:
    lengths = text_lengths(200_000)
    stream = Lengths(lengths.tolist())
    contiguous, best = (pack(stream, np.array([[0, stream.tokens]]), 128, True, h) for h in ("contiguous", "best_fit"))
    assert len(pickle.dumps(contiguous)) < 2 * len(contiguous)
    pieces = sum(len(window.starts) for window in best._windows)
    assert len(pickle.dumps(best)) < 8 * pieces + 4 * len(best) + 2000
