"""results.json: what a run measured once, kept so that resuming and exporting need not measure it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.identity import differences
from ..data.prepare import Blocks
from ..errors import InputError
from ..objective.evaluate import LanguageLoss
from ..training.arguments import CloneArguments

RESULTS_FILE = "results.json"
_SEED = "training.data_seed, or training.seed"  # of the order in which a trainer reads the blocks


@dataclass(frozen=True)
class DataRecord:
    """One side of the data: how many blocks one pass has, the digest of them in order, and what decides it."""

    blocks: int
    digest: str
    made_of: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What a run knows of its data and of its losses on the validation blocks, in nats per token.

    student: The student's by optimiser step, of those that were evaluated.
    since: The step from which on they are of this validation text; another one was given when the run was resumed.
    allowed: For each time that the run went on with other training data, the step and what was other (`--allow data`).
    changes: What was said when the run was resumed with another recipe or text, by the step from which it went on.
    """

    train: DataRecord
    validation: DataRecord
    teacher: LanguageLoss | None = None
    student: dict[int, float] = field(default_factory=dict)
    since: int = 0
    allowed: tuple[dict[str, Any], ...] = ()
    changes: dict[int, list[str]] = field(default_factory=dict)

    def with_changes(self, step: int, lines: Iterable[str]) -> Results:
        """With what was said of this run when it was resumed at `step`."""
        new = [line for line in lines if line not in self.changes.get(step, [])]
        return replace(self, changes={**self.changes, step: [*self.changes.get(step, []), *new]}) if new else self

    def with_history(self, history: Iterable[Mapping[str, Any]]) -> Results:
        """With the evaluations that Trainer's log lists."""
        found = {int(line["step"]): float(line["eval_lm"]) for line in history if "eval_lm" in line}
        return replace(self, student={**self.student, **{s: v for s, v in found.items() if s >= self.since}})

    def table(self, step: int) -> dict[str, float]:
        """The losses of a model card: teacher, student before training, and student at `step`, as far as known."""
        rows = {} if self.teacher is None else {"teacher": self.teacher.loss}
        named = {0: "student before training", step: f"student after {step:,} steps"}
        return rows | {name: self.student[at] for at, name in named.items() if at in self.student}


def measure_data(blocks: Blocks, arguments: CloneArguments) -> Results:
    """What both sides are; nothing is read for it."""
    train = DataRecord(len(blocks.train), blocks.digests["train"], blocks.made_of["train"])
    validation = DataRecord(len(blocks.validation), blocks.digests["validation"], blocks.made_of["validation"])
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    return Results(replace(train, made_of={**train.made_of, _SEED: str(seed)}), validation)


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
            allowed=tuple(tree.get("allowed", ())),
            changes={int(step): [str(line) for line in lines] for step, lines in tree.get("changes", {}).items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def dump_results(results: Results) -> str:
    """The text of `results.json`."""
    return json.dumps(asdict(results), indent=1) + "\n"


def carry_over(old: Results | None, new: Results, step: int, allow_data: bool) -> tuple[Results, list[str]]:
    """The record of a run that is resumed at `step`, and what to say of it.

    Args:
        allow_data: Whether it may go on with other training data, which is recorded.

    Raises:
        InputError: The training data are not those that the run was begun with; it names what differs.
    """
    if old is None:
        return new, [
            "the run to resume has no results.json that can be read, so its text is not compared with this one"
        ]
    said = []
    new = replace(new, allowed=old.allowed, changes=old.changes)
    seeds = [side.made_of.get(_SEED) for side in (old.train, new.train)]
    if old.train.digest != new.train.digest or seeds[0] != seeds[1]:
        differs = differences(old.train.made_of, new.train.made_of) or ["how they are packed"]
        if not allow_data:
            raise InputError(
                f"data: the training data are not those of the run to resume ({old.train.blocks:,} blocks, now "
                f"{new.train.blocks:,}): {'; '.join(differs)}; give the same data, go on by --allow data, or begin "
                "another run with method.start_from"
            )
        new = replace(new, allowed=(*new.allowed, {"step": step, "differs": differs}))
        said.append(f"data: the training data are others from step {step + 1:,} on: {'; '.join(differs)}")
    if old.validation.digest != new.validation.digest:
        said.append("data: the validation text is not that of the run to resume, so its losses can't be compared")
        return replace(new, since=step + 1), said
    return replace(new, teacher=old.teacher, student=old.student, since=old.since), said
