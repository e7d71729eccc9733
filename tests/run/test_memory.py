"""Out of memory comes before the first step, in one line that says what saves how much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import lrc, refused

from lowrank_clone.recipe.load import load_recipe
from lowrank_clone.run import estimates
from lowrank_clone.run.job import check
from lowrank_clone.training import rehearsal


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(estimates._CPU)])
def test_the_line_says_what_to_turn(recipe: Path, tmp_path: Path, error: Exception, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(rehearsal, "rehearse", full)
    message = refused(capsys, "train", recipe)
    assert "out of memory: this recipe needs about" in message and "GiB in each process" in message
    assert "training.per_device_train_batch_size=1 with training.gradient_accumulation_steps=2 saves about" in message
    assert not (tmp_path / "run").exists()


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="another"), estimates.memory_advice(None, None):  # type: ignore[arg-type]
        raise RuntimeError("another")


def test_savings_are_the_cost_model_s(recipe: Path) -> None:
    job = check(load_recipe(str(recipe), ["training.per_device_train_batch_size=4"]))
    peak, ways = estimates.savings(job.recipe, job.plan)
    estimated = estimates.estimator(job.recipe, job.plan, {})
    assert peak == estimated().peak_bytes
    way = "training.per_device_train_batch_size=1 with training.gradient_accumulation_steps=4"
    assert ways[way] == peak - estimated(micro_batch=1, accumulation=4).peak_bytes > 0
    assert list(ways.values()) == sorted(ways.values(), reverse=True)


def test_a_run_can_do_without_the_rehearsal(recipe: Path, monkeypatch) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: pytest.fail("it was rehearsed"))
    assert lrc("train", recipe, "training.rehearse=false", "training.max_steps=1") == 0
