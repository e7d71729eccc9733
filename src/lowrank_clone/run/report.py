"""A run's folder read for its report: no weights and no text, so it can be read while the run goes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import InputError, one_line
from ..plan.roles import Plan
from ..plan.sizes import remarks, size_rows, teacher_parameters
from ..recipe.load import dump_recipe, load_recipe
from ..recipe.method import last_kinds
from ..recipe.schema import Recipe
from ..recipe.yaml12 import parse_yaml
from ..report.view import Grid, RunView, Student
from ..training.durable import read_object
from ..training.last_checkpoint import STATE_FILE, complete_checkpoints
from ..training.metrics import read_metrics
from .disk import disk_errors, shown_path
from .job import plan_of
from .output_folder import NEW
from .recorded import events, logged_taps, read_scores
from .results import Results, read_results
from .samples import SAMPLES_FILE, read_samples
from .teachers import load_tokenizer

REPORT_FILE = "report.html"


class RunReader:
    """One run as a report shows it, read as often as it is asked for.

    Args:
        name: What the report calls it.
        tokenizer: Whether to tell which vocabulary it has, for runs side by side.

    Raises:
        InputError: It is no run's folder.
    """

    def __init__(self, folder: Path, name: str, *, tokenizer: bool = False) -> None:
        self.folder, self.name, self._tokenizer = folder, name, tokenizer
        with disk_errors(f"`{shown_path(folder)}` can't be read"):
            if not folder.is_dir():
                raise InputError(f"`{folder}` is no folder; expected the folder of a run")
            if not (folder / "recipe.yaml").is_file():
                raise InputError(f"`{folder}` holds no recipe.yaml; expected the folder of a run")

    def read(self, *, finished: bool | None = None, begun: bool = True) -> RunView:
        """The run as far as it went.

        Args:
            finished: Whether it is at its end; found out unless given.
            begun: Whether to refuse a run that logged nothing yet.

        Raises:
            InputError: Its recipe is damaged, or nothing was logged.
        """
        with disk_errors(f"`{shown_path(self.folder)}` can't be read"):
            return self._read(finished, begun)

    def _read(self, finished: bool | None, begun: bool) -> RunView:
        path = self.folder / "metrics.jsonl"
        metrics = read_metrics(path)
        if not metrics and begun:
            what = "holds no metrics.jsonl" if not path.is_file() else "has a metrics.jsonl without one good line"
            raise InputError(
                f"`{self.folder}` {what}, so there is nothing to report; let it log first, or wait with --watch"
            )
        recipe, results = self._recipe(), read_results(self.folder)
        state, found, versions = self._state(), read_samples(self.folder), read_object(self.folder / "versions.json")
        steps = int(recipe.training.arguments.get("max_steps") or -1)
        steps = steps if steps > 0 else int(state.get("max_steps") or 0)
        step = max((line["step"] for line in metrics), default=0)
        if finished is None:
            finished = 0 < steps <= step and (self.folder / "student" / "config.json").is_file()
        scores, damaged = read_scores(self.folder / "eval")
        notes = [*self._notes(metrics, results, found is not None, finished), *damaged]
        samples, ranks, rank_tokens = found or ((), (), 0)
        best = state.get("best_global_step") if recipe.training.arguments.get("load_best_model_at_end") else None
        text = dump_recipe(recipe)
        return RunView(
            name=self.name,
            folder=str(self.folder),
            teacher=Path(recipe.teacher.model).name,
            step=step,
            steps=steps or None,
            tokens=int(max((line["tokens"] for line in metrics if "tokens" in line), default=0)),
            finished=finished,
            losses=_losses(metrics, results, best if finished else None),
            metrics=metrics if results is None else [line for line in metrics if not _of_other_text(line, results)],
            recipe=text,
            settings=dict(_flat(parse_yaml(text, "recipe.yaml"))),
            student=self._student[0],
            taps=logged_taps(metrics),
            validation_tokens=None if results is None or results.teacher is None else results.teacher.tokens,
            text=None if results is None else results.validation.digest,
            vocabulary=self._vocabulary if self._tokenizer else None,
            samples=samples,
            ranks=ranks,
            rank_tokens=rank_tokens,
            events=events(metrics, versions, () if results is None else results.allowed),
            scores=scores,
            versions={key: str(value) for key, value in versions.items() if not isinstance(value, (list, dict))},
            notes=tuple(notes),
        )

    def _recipe(self) -> Recipe:
        return load_recipe(str(self.folder / "recipe.yaml"))

    @cached_property
    def _student(self) -> tuple[Student | None, str]:
        """The shapes, or why they are not known. A teacher that was moved takes nothing else from the report."""
        try:
            recipe = self._recipe()
            plan = plan_of(recipe)
        except InputError as error:
            return None, one_line(error, 300)
        return _shapes(plan, recipe), ""

    @cached_property
    def _vocabulary(self) -> str | None:
        try:
            words = load_tokenizer(self._recipe().teacher).get_vocab()
        except InputError:
            return None
        digest = sha256(json.dumps(sorted(words.items())).encode()).hexdigest()
        return f"{len(words):,} entries, {digest[:8]}"

    def _state(self) -> dict[str, Any]:
        checkpoints = complete_checkpoints(self.folder)
        return read_object(checkpoints[max(checkpoints)] / STATE_FILE) if checkpoints else {}

    def _notes(
        self, metrics: Sequence[Mapping[str, Any]], results: Results | None, samples: bool, finished: bool
    ) -> Iterable[str]:
        path = self.folder / "metrics.jsonl"
        lines = len(path.read_bytes().splitlines()) if path.is_file() else 0
        if lines > len(metrics):
            yield f"{lines - len(metrics):,} damaged line(s) of metrics.jsonl are left out."
        if results is None:
            yield "results.json is missing or damaged, so the teacher's loss is not known."
        elif results.since:
            yield (
                "The run was resumed with other validation text: evaluations before step "
                f"{results.since:,} are left out."
            )
        if finished and not samples:
            yield f"{SAMPLES_FILE} is missing or damaged: no samples, no effective ranks."
        if self._student[1]:
            yield f"Its plan is not shown, since its teacher's config can't be read: {self._student[1]}."
        if (self.folder / NEW / "recipe.yaml").is_file():
            yield f"A new run is going on in {NEW}; this is the old one, until the new one's first checkpoint."


def read_runs(readers: Sequence[RunReader], *, begun: bool = True) -> list[RunView]:
    """All runs of a report."""
    return [reader.read(begun=begun) for reader in readers]


def named(folders: Sequence[Path]) -> dict[Path, str]:
    """A short name for each folder that no other one has: its last parts, as many as that takes."""
    names = {folder: folder.resolve().parts for folder in folders}
    longest = max(map(len, names.values()))
    found = {}
    for folder, parts in names.items():
        others = [other for path, other in names.items() if path != folder]
        count = next((n for n in range(1, longest) if all(o[-n:] != parts[-n:] for o in others)), longest)
        found[folder] = "/".join(parts[-count:])
    return found


def _shapes(plan: Plan, recipe: Recipe) -> Student:
    rows = size_rows(plan, last_kinds(plan, recipe.method))
    cells = [
        (
            row.group,
            f"{row.tensors:,}",
            f"{row.deployed:,}",
            f"{row.trained:,}",
            "" if row.reachable is None else f"{row.reachable:.1%}",
        )
        for row in rows
    ]
    total = [f"{sum(values):,}" for values in zip(*((r.tensors, r.deployed, r.trained) for r in rows), strict=True)]
    columns = ("group", "tensors", "deployed parameters", "trained parameters", "reachable share")
    layers = {role.layer for role in plan.roles.values() if role.layer is not None}
    return Student(
        teacher_width=plan.teacher_width,
        width=plan.student_width,
        teacher_parameters=teacher_parameters(plan),
        parameters=plan.deployed_parameters,
        layers=len(layers),
        vocabulary=int(plan.student_config.vocab_size),
        groups=Grid(columns, (*cells, ("all", *total, ""))),
        remarks=tuple(remarks(plan)),
    )


def _losses(metrics: Iterable[Mapping[str, Any]], results: Results | None, best: int | None) -> dict[str, float]:
    """Of the teacher, the student before training, and the student now, as far as they are known."""
    student = {line["step"]: float(line["eval_lm"]) for line in metrics if "eval_lm" in line}
    found: dict[str, float] = {}
    if results is not None:
        student = {step: loss for step, loss in {**student, **results.student}.items() if step >= results.since}
        found |= {} if results.teacher is None else {"teacher": results.teacher.loss}
    if 0 in student:
        found["before"] = student[0]
    if student:
        found["now"] = student[best if best in student else max(student)]
    return {name: float(loss) for name, loss in found.items() if _is_number(loss)}


def _is_number(value: Any) -> bool:
    """A damaged results.json may hold anything."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _of_other_text(line: Mapping[str, Any], results: Results) -> bool:
    return line["step"] < results.since and any(key.startswith("eval_") for key in line)


def _flat(tree: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree, default=str)
