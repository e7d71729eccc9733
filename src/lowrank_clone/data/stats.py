"""What a recipe's text is like: sizes, lengths of documents, shares of the mix, how full its blocks are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .blocks import PackedBlocks
from .check import keyed_sources
from .config import DataConfig
from .prepare import Blocks
from .report import SourceReport

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Lengths:
    """Lengths of the documents of a source, in tokens, both sides together.

    counts: Documents by powers of two: `counts[k]` have 2^k to 2^(k+1) - 1 tokens. quantiles: At `QUANTILES`.
    """

    documents: int
    mean: float
    longest: int
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SourceStats:
    """One source for training.

    train: What of it is trained on. validation: What of it is held out; None where validation has other sources.
    asked: Share of one pass that the recipe asks for; None where it depends on the run's length.
    rows: Its blocks in one pass, in the order in which they are read.
    """

    key: str
    train: SourceReport
    validation: SourceReport | None
    lengths: Lengths
    asked: float | None
    rows: PackedBlocks

    @property
    def full(self) -> float:
        """Share of the places of its blocks for training that hold a token of its text."""
        return self.train.tokens / (self.train.packed_blocks * self.rows.length)


def source_stats(blocks: Blocks, config: DataConfig) -> list[SourceStats]:
    """The sources for training, in their order."""
    count, found = len(config.sources), []
    reports = blocks.report.sources
    shared = not isinstance(config.validation, list)
    asked = asked_shares(config)
    sizes = np.cumsum([0, *(len(packing) for _, packing in blocks.train.parts)])
    for index, (key, _) in enumerate(keyed_sources(config)[:count]):
        of_source = (blocks.train.order >= sizes[index]) & (blocks.train.order < sizes[index + 1])
        found.append(
            SourceStats(
                key,
                reports[index],
                reports[count + index] if shared else None,
                _lengths(np.diff(blocks.train.parts[index][0].ends(), prepend=0)),
                asked[index],
                blocks.train.select(np.flatnonzero(of_source)),
            )
        )
    return found


def asked_shares(config: DataConfig) -> list[float | None]:
    """The share of one pass that each source is asked for: by its weight, or its budget among budgets.

    Where some sources have a budget and others a weight, what the others share depends on the length of the run.
    """
    budgets = [source.tokens for source in config.sources]
    if all(budget is None for budget in budgets):
        weights = sum(source.weight for source in config.sources)
        return [source.weight / weights for source in config.sources]
    if any(budget is None for budget in budgets):
        return [None for _ in budgets]
    total = sum(budget or 0 for budget in budgets)
    return [(budget or 0) / total for budget in budgets]


def _lengths(lengths: np.ndarray) -> Lengths:
    powers = np.floor(np.log2(lengths)).astype(int)
    return Lengths(
        documents=len(lengths),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        quantiles=tuple(float(value) for value in np.quantile(lengths, QUANTILES)),
        counts=tuple(np.bincount(powers).tolist()),
    )
