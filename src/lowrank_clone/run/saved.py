"""A run that is on the disk: where it stands, and its clone at the last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from ..data.check import check_sources
from ..errors import InputError
from ..model import CloneModel
from ..plan.roles import Plan
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe
from ..training.checkpoint import check_plan, load_clone
from ..training.last_checkpoint import complete_checkpoints, last_checkpoint
from ..training.metrics import read_metrics
from .build_clone import device_of, to_be_loaded, wrap
from .checkpoint_fit import FROM_SCRATCH
from .disk import disk_errors, shown_path
from .job import Job, make_arguments, plan_of, start_checkpoint
from .resolve import resolve_dtype
from .results import Results, read_results
from .teachers import load_teacher, load_tokenizer


@dataclass(frozen=True)
class SavedRun:
    """A run at one of its complete checkpoints, and what was counted and logged until then.

    `results` is None for a run that recorded nothing.
    """

    folder: Path
    recipe: Recipe
    plan: Plan
    checkpoint: Path
    step: int
    tokens: int
    metrics: list[dict[str, Any]]
    results: Results | None


def open_run(folder: Path, checkpoint: Path | None = None) -> SavedRun:
    """The run in `folder` at a checkpoint, the last complete one unless given. Reads neither weights nor text.

    Raises:
        InputError: It is no run's folder, nothing is saved there yet, or its teacher's config is not found.
    """
    with disk_errors(f"`{shown_path(folder)}` can't be read"):
        if not (folder / "recipe.yaml").is_file():
            raise InputError(f"`{folder}` holds no recipe.yaml; expected the folder of a run")
        found = last_checkpoint(folder) if checkpoint is None else checkpoint
    if found is None:
        raise InputError(f"`{folder}` holds no complete checkpoint; let the run go on until it has saved one")
    if found not in complete_checkpoints(found.parent).values():
        raise InputError(f"`{found}` is no complete checkpoint; expected a folder such as {folder / 'checkpoint-100'}")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    plan = plan_of(recipe)
    check_plan(plan, found, scratch=recipe.method.baseline in FROM_SCRATCH)
    state = TrainerState.load_from_json(str(found / "trainer_state.json"))
    metrics = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] <= state.global_step]
    results = read_results(folder)
    if results is not None:
        results = results.with_history(state.log_history)
    return SavedRun(folder, recipe, plan, found, state.global_step, state.num_input_tokens_seen, metrics, results)


def clone_of(run: SavedRun, device: torch.device | None = None) -> CloneModel:
    """The clone of a saved run.

    Raises:
        InputError: The teacher is missing, or is another one than that of the run.
    """
    recipe = run.recipe
    device = device_of(recipe) if device is None else device
    teacher = load_teacher(recipe.teacher, resolve_dtype(recipe.teacher.dtype, device), device)
    clone = wrap(teacher, recipe, run.plan, to_be_loaded(recipe), seed=0)
    load_clone(clone, run.checkpoint)
    return clone


def job_of(run: SavedRun) -> Job:
    """The saved run as a job that begins anew, to read its text and compute its start again.

    Raises:
        InputError: The text or the teacher is not where it was.
    """
    recipe = replace(run.recipe, method=replace(run.recipe.method, compile=False))
    arguments = make_arguments(recipe)
    check_sources(recipe.data)
    start_from = start_checkpoint(recipe.method.start_from)
    return Job(recipe, run.plan, load_tokenizer(recipe.teacher), arguments, run.folder, None, start_from)


def load_run(
    folder: str | Path, checkpoint: str | Path | None = None, *, device: str | torch.device | None = None
) -> CloneModel:
    """The clone of a run that `lrc train` left: the teacher, and the student with its factors as they were saved.

        clone = load_run("runs/a")
        clone.student.generate(...)

    It needs the teacher and none of the training text. The student is in evaluation mode, and can be trained on.

    Args:
        folder: The run's folder.
        checkpoint: One of its `checkpoint-N` folders; the last complete one unless given.
        device: Where both models go: the accelerator if there is one and the recipe does not say `use_cpu`.

    Raises:
        InputError: There is no such run or checkpoint, or the teacher is missing or another one.
    """
    run = open_run(Path(folder).expanduser(), None if checkpoint is None else Path(checkpoint).expanduser())
    clone = clone_of(run, None if device is None else torch.device(device))
    return clone.eval()
