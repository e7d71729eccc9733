"""Budgets are met to a block, shares to a percent, and a mix that shrinks says so."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.mix import Stock, mix, mixed_order, needed_tokens, validation_counts
from lowrank_clone.errors import InputError

LENGTH = 100


def counts(*sources: tuple[int, dict[str, Any]], run: int | None = None, **options: Any) -> list[int]:
    stocks = [
        Stock(f"data.sources.{i}", SourceConfig(path=f"s{i}", **fields), blocks, blocks * LENGTH)
        for i, (blocks, fields) in enumerate(sources)
    ]
    config = DataConfig(sources=[stock.source for stock in stocks], sequence_length=LENGTH, **options)
    return list(mix(stocks, config, run).counts)


def test_shares_are_kept_until_a_source_runs_out() -> None:
    assert counts((1000, {})) == [1000]
    assert counts((1000, {"weight": 3}), (400, {})) == [1000, 333]
    assert counts((1000, {"weight": 0.5}), (900, {"weight": 0.5})) == [900, 900]


def test_a_small_source_does_not_shrink_the_mix_without_a_word() -> None:
    """17,000 tokens at a tenth of 1.56M would leave 170,000."""
    sources = ((15_600, {"weight": 0.9}), (170, {"weight": 0.1}))
    with pytest.raises(InputError) as caught:
        counts(*sources)
    said = str(caught.value)
    assert said.startswith("data.sources.1: with 0.1 of the mix, `s1` (17,000 tokens) runs out when 170,000 of the")
    assert "repeat: true (it is read again, up to 10.2 times in a pass)" in said and "repeat: false" in said
    again = counts(sources[0], (170, {"weight": 0.1, "repeat": True}))
    assert again == [15_600, 1733] and again[1] / sum(again) == pytest.approx(0.1, rel=0.01)
    assert counts(sources[0], (170, {"weight": 0.1, "repeat": False})) == [1530, 170]


def test_a_mix_that_ends_before_the_run_is_refused_where_there_is_text_enough() -> None:
    sources = ((1000, {}), (600, {}))
    assert counts(*sources) == counts(*sources, run=1200 * LENGTH) == [600, 600]
    with pytest.raises(InputError, match=r"where the run takes 130,000; set in this source repeat"):
        counts(*sources, run=1300 * LENGTH)
    assert counts(*sources, run=1300 * LENGTH, repeat=True) == [600, 600]
    assert counts(*sources, run=1700 * LENGTH) == [600, 600]  # more than there is: a question of passes, asked later


def test_budgets_are_met_and_the_others_share_what_is_left() -> None:
    assert counts((1000, {"tokens": 30_000}), (500, {"tokens": 50_000})) == [300, 500]
    assert counts((1000, {"tokens": 30_049}), (500, {})) == [300, 500]
    assert counts((1000, {"tokens": 30_000}), (900, {"weight": 2}), (900, {}), run=90_000) == [300, 400, 200]
    assert counts((1000, {"tokens": 1}), (500, {})) == [1, 500]
    with pytest.raises(
        InputError, match=r"data.sources.1: the budgets .* \(30,000 tokens\) leave nothing of the run's"
    ):
        counts((1000, {"tokens": 30_000}), (500, {}), run=30_000)


def test_a_budget_beyond_its_source() -> None:
    with pytest.raises(InputError, match=r"data.sources.0.tokens: got 100,001, and `s0` has 100,000 tokens for train"):
        counts((1000, {"tokens": 100_001}))
    for repeat in (None, False):
        with pytest.raises(InputError, match=r"which reads it 2.5 times in one pass"):
            counts((1000, {"tokens": 250_000, "repeat": repeat}), (10, {}))
    assert counts((1000, {"tokens": 250_000, "repeat": True}), (10, {})) == [2500, 10]


def test_all_sources_that_repeat_are_read_once_at_least() -> None:
    assert counts((100, {"repeat": True}), (1000, {"repeat": True, "weight": 2})) == [500, 1000]


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_right_to_a_percent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.05, 1, 3)
    found = counts(*((int(rng.integers(3000, 9000)), {"weight": w, "repeat": False}) for w in weights.tolist()))
    assert np.array(found) / sum(found) == pytest.approx(weights / weights.sum(), rel=0.01)


@pytest.mark.parametrize(("sizes", "taken"), [((5, 7), (5, 7)), ((40, 9), (10, 9)), ((3, 100), (20, 50)), ((4,), (0,))])
def test_the_order_has_every_block_as_often_as_it_is_taken(sizes: Any, taken: Any) -> None:
    order = mixed_order(sizes, taken, 0)
    assert len(order) == sum(taken) and order.dtype == np.int64
    found = Counter(order.tolist())
    for index, (size, count) in enumerate(zip(sizes, taken, strict=True)):
        first = sum(sizes[:index])
        times = [found[first + block] for block in range(size)]
        assert sum(times) == count and max(times) - min(times) <= 1
    assert taken == (0,) or mixed_order(sizes, taken, 1).tolist() != order.tolist()


def test_every_stretch_of_the_order_has_the_shares() -> None:
    order = mixed_order((3000, 1000), (3000, 1000), 0)
    for start in range(0, 4000, 400):
        assert (order[start : start + 400] >= 3000).sum() == pytest.approx(100, abs=3)


@pytest.mark.parametrize(
    ("sizes", "shares", "limit", "expected"),
    [
        ((5, 9), (1, 1), None, [5, 9]),
        ((5, 9), (1, 1), 20, [5, 9]),
        ((500, 900), (1, 1), 100, [50, 50]),
        ((5, 900), (1, 1), 100, [5, 95]),
        ((500, 900), (3, 1), 100, [75, 25]),
        ((500, 900), (1e-9, 1), 100, [1, 100]),
    ],
)
def test_validation_takes_up_to_its_limit(sizes: Any, shares: Any, limit: Any, expected: list[int]) -> None:
    assert validation_counts(sizes, shares, limit) == expected


def test_what_a_hub_dataset_is_read_for() -> None:
    def needed(run: int | None, *fields: dict[str, Any], **options: Any) -> list[int | None]:
        sources = [SourceConfig(path=f"o/{i}", **one) for i, one in enumerate(fields)]
        return list(needed_tokens(DataConfig(sources=sources, **options), run).values())

    assert needed(None, {}, {"tokens": 10**9}, validation=0.5) == [None, int(2.2e9)]
    first, second, third = needed(10**9, {"weight": 3}, {}, {"tokens": 2 * 10**8}, validation=0.01)
    assert first is not None and second is not None and third is not None
    assert first == 6.4e8 and second == 2.2e8
    assert third == 2.2e8
    assert needed(None, {}, validation=["v/w"]) == [None, 513 * 2048]


def test_one_line_says_how_often_a_source_is_read() -> None:
    stock = Stock("data.sources.0", SourceConfig(path="s", tokens=30_000, repeat=True), 100, 10_000)
    config = DataConfig(sources=[stock.source], sequence_length=LENGTH)
    (line,) = mix([stock], config, None).lines
    assert re.fullmatch(r"data.sources.0 s: is read 3 times in one pass \(repeat: true\)", line)
