"""What `CloneTrainer` overrides is still what `Trainer` calls: a release that calls something else fails here."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import samples, trainer_of
from transformers import Trainer

from lowrank_clone.training.trainer import CloneTrainer

OVERRIDDEN = sorted(
    name
    for name, value in vars(CloneTrainer).items()
    if inspect.isfunction(value) and name in vars(Trainer) and name != "__init__"
)
FOR_USERS = {"train"}  # which Trainer itself does not call


def spied(method: Callable[..., Any], name: str, reached: set[str]) -> Callable[..., Any]:
    """The method, which notes when it is called by code of transformers."""

    def spy(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("transformers."):
            reached.add(name)
        return method(*args, **kwargs)

    return spy


def test_trainer_calls_every_method_that_is_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[str] = set()
    for name in OVERRIDDEN:
        monkeypatch.setattr(CloneTrainer, name, spied(getattr(CloneTrainer, name), name, reached))
    options = {
        "eval_dataset": samples(4),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "max_steps": 4,
    }
    trainer_of(tmp_path, **options).train()
    trainer_of(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert reached == set(OVERRIDDEN) - FOR_USERS


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overrides_take_what_trainer_gives(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (Trainer, CloneTrainer))
    names = [parameter.name for parameter in theirs.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    ours.bind(*names)
    ours.bind(None, **dict.fromkeys(names[1:]))
    needed = {p.name for p in ours.parameters.values() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    assert needed <= {p.name for p in theirs.parameters.values() if p.default is p.empty}


def test_private_methods_are_few() -> None:
    """Each may change in any release."""
    assert len([name for name in OVERRIDDEN if name.startswith("_")]) <= 9
