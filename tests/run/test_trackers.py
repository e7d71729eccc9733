"""`training.report_to` of a run: TensorBoard gets what metrics.jsonl gets, and leaves nothing in the run's folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import lrc, refused

from lowrank_clone.training.metrics import read_metrics

pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `report`)")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Each scalar's values by step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder))
        events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_loss_and_is_kept_when_the_run_is_replaced(recipe: Path, capsys: Any) -> None:
    tree = yaml.safe_load(recipe.read_text())
    tree["training"] |= {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 1}
    recipe.write_text(yaml.safe_dump(tree))
    run, beside = recipe.parent / "run", recipe.parent / "run-tensorboard"
    for flag in ([], ["--overwrite"]):
        assert lrc("train", recipe, *flag) == 0
        assert f"tensorboard --logdir {beside}" in capsys.readouterr().out
        last = max(beside.iterdir())
        found = scalars(last)
        for line in read_metrics(run / "metrics.jsonl"):
            for key in ("lm", "kl", "clone", "eval_lm", "eval_relative/model.layers.1.mlp.up_proj.weight"):
                if key in line:
                    tag = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
                    assert found[tag][line["step"]] == pytest.approx(line[key], rel=1e-5)
        assert set(found["eval/lm"]) == {0, 1, 2} and set(found["train/lm"]) == {1, 2}
        last.rename(beside / f"0-{len(flag)}")  # two runs may fall into one second
    assert not [path for path in run.rglob("*tfevents*")] and not (run / ".new-run").exists()


def test_a_tracker_that_is_not_installed_is_refused(recipe: Path, capsys: Any) -> None:
    told = refused(capsys, "train", recipe, "training.report_to=comet_ml")
    assert "comet_ml" in told and "not installed" in told
