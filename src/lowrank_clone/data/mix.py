"""How many blocks one pass over the mix takes of each source, and in which order they stand.

* A source with `tokens` gives that many, to a block; it must have them, unless it says `repeat: true`.
* The others share what is left in strict shares of their weights: until the first of them runs out, or, where budgets
  and the length of the run are given, until the run is full. A source that says `repeat: true` never runs out.
* A mix that would so end at less than half of the text, or before the run does although there is text enough, is
  refused unless the source that ends it says `repeat: false`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..mixing import keyed, shuffled
from .config import DataConfig, SourceConfig

_REPEATED, _MIXED = 1, 2  # what a key is for


@dataclass(frozen=True)
class Stock:
    """What a source has for training: blocks of the same length, with so many tokens in them."""

    key: str
    source: SourceConfig
    blocks: int
    tokens: int

    def blocks_of(self, tokens: float) -> int:
        """Blocks that hold about so many tokens, at least one."""
        return max(1, round(tokens * self.blocks / self.tokens))


@dataclass(frozen=True)
class Mix:
    """`counts`: blocks of each source in one pass, more than it has where it is read again."""

    counts: tuple[int, ...]
    lines: tuple[str, ...] = ()
    """What to say of it."""


def mix(stocks: Sequence[Stock], config: DataConfig, run_tokens: int | None) -> Mix:
    """Blocks of each source in one pass.

    Args:
        stocks: Each with at least one block.
        run_tokens: Tokens that the run reads in all, padding included; None where its length is counted in passes.

    Raises:
        InputError: A budget is larger than its source, or the mix would end too early, as above.
    """
    counts = np.zeros(len(stocks), int)
    for index, stock in enumerate(stocks):
        if stock.source.tokens is not None:
            _check_budget(stock)
            counts[index] = stock.blocks_of(stock.source.tokens)
    weighted = [index for index, stock in enumerate(stocks) if stock.source.tokens is None]
    if weighted:
        left = _left(stocks, counts, config, run_tokens)
        counts[weighted] = _shares([stocks[i] for i in weighted], config, left, _wanted(counts, config, run_tokens))
    return Mix(tuple(counts.tolist()), tuple(_lines(stocks, counts)))


def mixed_order(sizes: Sequence[int], counts: Sequence[int], seed: int) -> np.ndarray:
    """`[blocks of the mix]` int64: blocks, numbered through all sources, so that every stretch has about the shares.

    Args:
        sizes: `[sources]` blocks that each has.
        counts: `[sources]` blocks that are taken; what exceeds a size is read again, in another order.
    """
    first = np.cumsum(sizes) - np.asarray(sizes)
    chosen, places = [np.empty(0, np.int64)], [np.empty(0)]
    for index, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        rounds = [shuffled(size, seed, _REPEATED, index, again) for again in range(-(-count // max(size, 1)))]
        chosen.append(np.concatenate([np.empty(0, np.int64), *rounds])[:count] + first[index])
        within = keyed(np.arange(count, dtype=np.uint64), seed, _MIXED, index) / 2.0**64
        places.append((np.arange(count) + within) / max(count, 1))
    return np.asarray(np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")])


def validation_counts(sizes: Sequence[int], shares: Sequence[float], limit: int | None) -> list[int]:
    """`[sources]` blocks of each to validate on: all, or `limit` of them in these shares as far as they reach.

    Every source gives at least one, so there may be more than `limit` where there are more sources.
    """
    have = np.asarray(sizes)
    if limit is None or have.sum() <= limit:
        return [int(size) for size in have]
    wanted = np.asarray(shares, float)
    low, high = 0.0, float((have / wanted).max())
    for _ in range(100):  # how many blocks a share of 1 is worth, so that they add up
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(have, middle * wanted).sum() < limit else (low, middle)
    return [int(count) for count in np.clip(np.round(np.minimum(have, high * wanted)), 1, have)]


def needed_tokens(config: DataConfig, run_tokens: int | None) -> dict[str, int | None]:
    """By the key of each source, how many of its tokens are wanted, the held-out ones included; None for all.

    It is what a Hub dataset is read for. A source's own budget says it, or its share of what the budgets leave of the
    run.
    """
    budgets = sum(source.tokens or 0 for source in config.sources)
    weights = sum(source.weight for source in config.sources if source.tokens is None)
    shared = 1.0 - (config.validation if isinstance(config.validation, float) else 0.0)
    found: dict[str, int | None] = {}
    for index, source in enumerate(config.sources):
        wanted: float | None = source.tokens
        if wanted is None and run_tokens is not None:
            wanted = max(0, run_tokens - budgets) * source.weight / weights
        enough = None if wanted is None else int(1.05 * wanted / shared) + 4 * config.sequence_length
        found[f"data.sources.{index}"] = None if enough is None else _rounded_up(enough)
    if isinstance(config.validation, list):
        most = config.max_validation_blocks
        found |= {
            f"data.validation.{index}": None if most is None else (most + 1) * config.sequence_length
            for index in range(len(config.validation))
        }
    return found


def _rounded_up(number: int) -> int:
    """To two digits, so that another number of processes, which rounds a run's steps otherwise, asks for as many."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _check_budget(stock: Stock) -> None:
    budget = stock.source.tokens
    if budget is not None and budget > stock.tokens and not stock.source.repeat:
        raise InputError(
            f"{stock.key}.tokens: got {budget:,}, and `{stock.source.path}` has {stock.tokens:,} tokens for training; "
            f"expected at most these, or repeat: true in the source, which reads it {budget / stock.tokens:.3g} times "
            "in one pass"
        )


def _left(stocks: Sequence[Stock], counts: np.ndarray, config: DataConfig, run_tokens: int | None) -> int | None:
    """Blocks that budgets leave of the run to the sources without one; None where nothing is said of that."""
    if run_tokens is None or not counts.any():
        return None
    left = -(-run_tokens // config.sequence_length) - int(counts.sum())
    if left < 1:
        without = next(stock for stock in stocks if stock.source.tokens is None)
        raise InputError(
            f"{without.key}: the budgets of the other sources ({int(counts.sum()) * config.sequence_length:,} tokens) "
            f"leave nothing of the run's {run_tokens:,} tokens to `{without.source.path}`; lower their tokens, give "
            "this source tokens too, or lengthen the run"
        )
    return left


def _wanted(counts: np.ndarray, config: DataConfig, run_tokens: int | None) -> int:
    """Blocks that a run takes of the sources without a budget in its first pass; 0 where it may take fewer."""
    if run_tokens is None or config.repeat:
        return 0
    return max(0, -(-run_tokens // config.sequence_length) - int(counts.sum()))


def _shares(stocks: list[Stock], config: DataConfig, left: int | None, wanted: int) -> np.ndarray:
    """`[sources]` blocks in strict shares of the weights."""
    sizes = np.array([stock.blocks for stock in stocks])
    shares = np.array([stock.source.weight for stock in stocks])
    shares = shares / shares.sum()
    reach = sizes / shares  # of the mix, if this source were to end it
    ends = np.array([not stock.source.repeat for stock in stocks])
    total = float(reach[ends].min() if ends.any() else reach.max())
    used = total if left is None else min(total, left)
    if ends.any() and used == total:
        last = int(np.flatnonzero(ends)[np.argmin(reach[ends])])
        _check_end(stocks, shares, last, total, wanted)
    return np.maximum(1, np.round(shares * used)).astype(int)


def _check_end(stocks: list[Stock], shares: np.ndarray, last: int, total: float, wanted: int) -> None:
    """Refuse a source that ends the mix far too early, unless it says that it may."""
    sizes, stock = np.array([one.blocks for one in stocks]), stocks[last]
    used = int(np.minimum(sizes, shares * total).sum())
    too_little = used < sizes.sum() / 2
    if stock.source.repeat is False or not (too_little or round(total) < wanted <= sizes.sum()):
        return
    whole = sum(one.tokens for one in stocks)
    length = whole / sizes.sum()
    wants = f", where the run takes {wanted * length:,.0f}" if round(total) < wanted else ""
    times = float((sizes / shares).max() / total)
    raise InputError(
        f"{stock.key}: with {shares[last]:.3g} of the mix, `{stock.source.path}` ({stock.tokens:,} tokens) runs out "
        f"when {used * length:,.0f} of the {whole:,} tokens of all sources are read{wants}; set in this source repeat: "
        f"true (it is read again, up to {times:.3g} times in a pass), or repeat: false (the mix ends there), or give "
        "it a smaller weight or tokens"
    )


def _lines(stocks: Sequence[Stock], counts: np.ndarray) -> list[str]:
    return [
        f"{stock.key} {stock.source.path}: is read {count / stock.blocks:.3g} times in one pass (repeat: true)"
        for stock, count in zip(stocks, counts.tolist(), strict=True)
        if count > stock.blocks
    ]
