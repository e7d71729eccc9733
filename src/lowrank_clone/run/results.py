"""results.json: what a run measured once, kept so that resuming and exporting need not measure it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.prepare import Blocks
from ..errors import InputError
from ..objective.evaluate import LanguageLoss

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class DataRecord:
    """One side of the data: how many blocks there are, and the digest of their ids in order."""

    blocks: int
    sha256: str


@dataclass(frozen=True)
class Results:
    """What a run knows of its data and of its losses on the validation blocks, in nats per token.

    student: The student's by optimiser step, of those that were evaluated.
    since: The step from which on they are of this validation text; another one was given when the run was resumed.
    """

    train: DataRecord
    validation: DataRecord
    teacher: LanguageLoss | None = None
    student: dict[int, float] = field(default_factory=dict)
    since: int = 0

    def with_history(self, history: Iterable[Mapping[str, Any]]) -> Results:
        """With the evaluations that Trainer's log lists."""
        found = {int(line["step"]): float(line["eval_lm"]) for line in history if "eval_lm" in line}
        return replace(self, student={**self.student, **{s: v for s, v in found.items() if s >= self.since}})

    def table(self, step: int) -> dict[str, float]:
        """The losses of a model card: teacher, student before training, and student at `step`, as far as known."""
        rows = {} if self.teacher is None else {"teacher": self.teacher.loss}
        named = {0: "student before training", step: f"student after {step:,} steps"}
        return rows | {name: self.student[at] for at, name in named.items() if at in self.student}


def measure_data(blocks: Blocks) -> Results:
    """The digests of both sides."""
    return Results(_record(blocks.train), _record(blocks.validation))


def read_results(folder: Path) -> Results | None:
    """What a run in `folder` recorded; None if it recorded nothing that can be read."""
    try:
        tree = json.loads((folder / RESULTS_FILE).read_bytes())
        teacher = tree["teacher"]
        return Results(
            train=DataRecord(**tree["train"]),
            validation=DataRecord(**tree["validation"]),
            teacher=None if teacher is None else LanguageLoss(**teacher),
            student={int(step): float(loss) for step, loss in tree["student"].items()},
            since=int(tree["since"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def dump_results(results: Results) -> str:
    """The text of `results.json`."""
    return json.dumps(asdict(results), indent=1) + "\n"


def carry_over(old: Results | None, new: Results, step: int) -> tuple[Results, list[str]]:
    """The record of a run that is resumed at `step`, and what to say of it.

    Raises:
        InputError: The training text is not the one that the run was begun with.
    """
    if old is None:
        return new, [
            "the run to resume has no results.json that can be read, so its text is not compared with this one"
        ]
    if old.train != new.train:
        raise InputError(
            f"data: the training text is not that of the run to resume, whose {old.train.blocks:,} blocks had other "
            f"tokens than these {new.train.blocks:,}; give the same text, or begin another run with method.start_from"
        )
    if old.validation != new.validation:
        said = "data: the validation text is not that of the run to resume, so its losses can't be compared"
        return replace(new, since=step + 1), [said]
    return replace(new, teacher=old.teacher, student=old.student, since=old.since), []


def _record(blocks: Any) -> DataRecord:
    digest = hashlib.sha256()
    for batch in blocks.with_format("numpy", columns=["input_ids"]).iter(batch_size=1024):
        digest.update(batch["input_ids"].tobytes())
    return DataRecord(len(blocks), digest.hexdigest())
