"""The largest batch runs once before the first step, and changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainer import clone, logs_of, samples, trainer_of, watch_batches

from lowrank_clone.training.optim import plain
from lowrank_clone.training.rehearsal import longest, rehearse

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adamw": ({}, {}),
    "muon": ({}, {"muon": True}),
    "adafactor, accumulated": ({}, {"optim": "adafactor", "gradient_accumulation_steps": 2}),
    "running means": ({"clone_normalization": "target"}, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_the_same_bit_for_bit(case: str, tmp_path: Path) -> None:
    objective, options = CASES[case]
    runs = []
    for rehearsed in (False, True):
        random.seed(0), np.random.seed(0)
        trainer = trainer_of(tmp_path / str(rehearsed), clone(**objective), rehearse=rehearsed, max_steps=3, **options)
        seen = watch_batches(trainer)
        trainer.train()
        assert len(seen) == len(runs[0][1]) + min(options.get("gradient_accumulation_steps", 1), 2) if runs else True
        runs.append((trainer, seen, (random.random(), float(np.random.rand()), float(torch.rand(())))))
    (without, _, chance), (with_it, _, chance_too) = runs
    assert chance == chance_too
    for ours, theirs in zip(logs_of(with_it), logs_of(without), strict=True):
        assert ours == theirs
    for name, factor in without.clone.factors.items():
        assert torch.equal(factor, with_it.clone.factors[name]), name
    means = [trainer.clone.target_squares for trainer, *_ in runs]
    if means[0] is not None:
        assert torch.equal(means[0].mean, means[1].mean)
    states = [plain(trainer.optimizer).state_dict() for trainer, *_ in runs]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_optimiser_s_state_is_there_while_the_batch_runs(tmp_path: Path) -> None:
    model = clone()
    optimizer = torch.optim.AdamW(model.factors.parameters(), lr=1e-3, weight_decay=0.1)
    from lowrank_clone.training.optim import bind

    bind(optimizer, model.factors)
    before = {name: factor.clone() for name, factor in model.factors.items()}
    alive: list[int] = []
    model.register_forward_pre_hook(lambda *_: alive.append(len(optimizer.state)))
    rehearse(model, optimizer, {"input_ids": samples(1)[0]["input_ids"][None]}, accumulation=1)
    assert alive == [len(model.factors)] and not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert all(torch.equal(factor, before[name]) and factor.grad is None for name, factor in model.factors.items())


def test_the_longest_row_is_taken() -> None:
    rows = [{"input_ids": torch.arange(length), "text": "x"} for length in (3, 9, 5)]
    assert len(longest(rows)["input_ids"]) == 9 and set(longest(rows)) == {"input_ids"}
