"""The relative error of every tap at each evaluation: that of a naive comparison of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import clone, samples, trainer_of, unequal_samples

from lowrank_clone.inspection.activations import relative_errors


@pytest.mark.parametrize(
    "options",
    [{}, {"clone_normalization": "target"}, {"execution": "interleaved"}, {"target_gradient": False}],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_relative_errors_of_an_evaluation_are_those_of_an_inspection(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = clone(family, **options)
    rows = samples(5, seed=3)
    trainer = trainer_of(tmp_path, model, eval_dataset=rows, per_device_eval_batch_size=2, max_steps=1)
    for when in ("before the first step", "after it"):
        found = trainer.evaluate()
        oracle = relative_errors(model.teacher, model.student, model.plan, model.factors, rows)
        expected = {f"eval_relative/{error.tap.name}": error.error for error in oracle}
        assert {k: v for k, v in found.items() if "relative" in k} == pytest.approx(expected, rel=1e-4), when
        trainer.train()


def test_padding_changes_no_relative_error(tmp_path: Path) -> None:
    model, padded = clone(), unequal_samples()
    alone = [{"input_ids": row["input_ids"][row["attention_mask"].bool()]} for row in padded[4:]]
    found = [
        trainer_of(tmp_path, model, eval_dataset=rows, per_device_eval_batch_size=size).evaluate()
        for rows, size in ((padded[4:], 4), (alone, 1))
    ]
    one, other = ({k: v for k, v in losses.items() if "relative" in k} for losses in found)
    assert one and one == pytest.approx(other, rel=1e-5)


def test_without_log_taps_or_without_taps_there_are_none(tmp_path: Path) -> None:
    for model, options in ((clone(), {"log_taps": False}), (clone(clone_weight=0.0), {})):
        trainer = trainer_of(tmp_path, model, eval_dataset=samples(2), **options)
        assert not [key for key in trainer.evaluate() if "relative" in key]
