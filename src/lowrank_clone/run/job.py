"""A recipe checked against its teacher, its data and its folder, before weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, TrainerState
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..data.check import check_length, check_sources, keyed_sources
from ..data.files import find_files
from ..errors import InputError, one_line
from ..execution.checkpointing import checkpointing_options
from ..objective.documents import document_mask_refusal
from ..plan.classify import make_plan
from ..plan.decoder import decoder_config
from ..plan.roles import Plan
from ..recipe.load import load_recipe
from ..recipe.method import check_method
from ..recipe.schema import Recipe
from ..recipe.student import check_student_overrides
from ..recipe.training import training_arguments
from ..starts.calibration.foresee import can_calibrate
from ..training.arguments import CloneArguments
from ..training.last_checkpoint import last_checkpoint
from ..training.plan_file import FACTORS_FILE
from .checkpoint_fit import check_beginning, check_going_on
from .output_folder import PART, Resume, check_apart, check_folder, file_beside, output_folder, state_of_folder
from .resolve import OF_A_START, WRITTEN, resolved
from .resume import compare_recipes
from .teachers import load_config, load_tokenizer


@dataclass(frozen=True)
class Job:
    """A checked run that has not started.

    recipe: As it will run, with everything decided. folder: Its output folder. checkpoint: What it resumes.
    start_from: The checkpoint whose factors it begins at. remarks: What to say of a recipe that is not that of the run
    to resume. finished: What to say if nothing is left to do. allowed: Sections of the recipe in which it may differ.
    seen: The output folder's state when it was checked.
    """

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    arguments: CloneArguments
    folder: Path
    checkpoint: Path | None
    start_from: Path | None
    remarks: tuple[str, ...] = ()
    finished: str | None = None
    allowed: frozenset[str] = frozenset()
    seen: tuple[bytes, ...] | None = None


def check(
    recipe: Recipe,
    *,
    resume: Resume = False,
    overwrite: bool = False,
    also: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> Job:
    """Check a recipe against its teacher, its data and its folder, without reading weights or writing anything.

    Args:
        resume: Go on from the last complete checkpoint in the output folder; `auto`: where there is none, begin.
        overwrite: Replace the run in the output folder.
        also: Names of files in the output folder that the caller will write beside the run's own.
        allow: Sections of the recipe in which a resumed run may differ from the run as it was begun.

    Raises:
        InputError: Whatever would stop the run later.
    """
    folder = output_folder(recipe)
    seen = state_of_folder(folder)
    checkpoint = check_folder(folder, resume=resume, overwrite=overwrite, also=also)
    before = None if checkpoint is None else _recipe_of(file_beside(checkpoint, "recipe.yaml"))
    recipe = _as_begun(recipe, before)
    arguments = make_arguments(recipe)
    start_from = None if checkpoint is not None else start_checkpoint(recipe.method.start_from)
    check_sources(recipe.data)
    check_apart(folder, _inputs(recipe, start_from))
    plan = plan_of(recipe, arguments.max_steps if arguments.max_steps > 0 else None)
    if arguments.activation_checkpointing:
        options: Any = arguments.activation_checkpointing_kwargs
        checkpointing_options(plan.student_config, options)
    if recipe.data.document_mask and (reason := document_mask_refusal(plan)):
        raise InputError(f"data.document_mask: {reason}; set it to false")
    if checkpoint is not None:
        check_going_on(plan, recipe.method, checkpoint)
    if start_from is not None:
        check_beginning(plan, recipe.method, start_from)
    tokenizer = load_tokenizer(recipe.teacher)
    check_length(recipe.data, max_length(plan.teacher_config))
    now = resolved(recipe, arguments, plan.teacher_config)
    job = Job(now, plan, tokenizer, arguments, folder, checkpoint, start_from, allowed=frozenset(allow), seen=seen)
    if checkpoint is None:
        return job
    if before is None:
        said_first = "the run to resume has no recipe.yaml that can be read, so this recipe is not compared with it"
        return replace(job, remarks=(said_first,))
    before = resolved(before, make_arguments(before), plan.teacher_config)
    said = compare_recipes(before, now, checkpoint, job.allowed)
    # Another text or teacher is compared by its content, for which the job has to run.
    same = (before.teacher, before.data) == (now.teacher, now.data)
    return replace(job, remarks=tuple(said), finished=_finished(job, checkpoint) if same else None)


def plan_of(recipe: Recipe, max_steps: int | None = None) -> Plan:
    """The plan of a recipe, with all checked that the teacher's config alone decides.

    Raises:
        InputError: The teacher, the student's overrides or the method do not go together.
    """
    config = load_config(recipe.teacher)
    check_student_overrides(recipe.student.overrides, decoder_config(config).to_dict())
    plan = make_plan(config, recipe.student.hidden_size, recipe.student.overrides)
    check_method(plan, recipe.method, max_steps)
    starts_there = recipe.method.baseline is None and recipe.method.start_from is None
    if recipe.method.init == "calibrated" and starts_there and (reason := can_calibrate(plan)):
        raise InputError(
            f"method.init: got calibrated, which `{plan.teacher_config.model_type}` can't have: its blocks can't be "
            f"run one at a time ({reason}); use channels or random"
        )
    return plan


def max_length(config: PretrainedConfig) -> int | None:
    """The longest sequence that the teacher's config admits, or None where it names no limit."""
    limit = config.to_dict().get("max_position_embeddings")
    return int(limit) if limit is not None else None


def make_arguments(recipe: Recipe) -> CloneArguments:
    """The Trainer's arguments.

    Raises:
        InputError: They do not go together.
    """
    fields: dict[str, Any] = {"report_to": "none", "dataloader_pin_memory": torch.accelerator.is_available()}
    fields["eval_on_start"] = True  # also where nothing is evaluated on the way: what a run reports begins with it
    fields |= recipe.training.arguments | {"output_dir": str(output_folder(recipe))}
    try:
        # The number of processes is known only to an arguments object, and the number of steps depends on it.
        decided = training_arguments(recipe, CloneArguments(**fields).world_size)
        return CloneArguments(**(decided | fields | {"max_steps": decided.get("max_steps", -1)}))
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training: {one_line(error, 500)}") from error


def _inputs(recipe: Recipe, start_from: Path | None) -> dict[str, Path]:
    """Files and folders that the run reads, by their key."""
    inputs: dict[str, Path] = {}
    if (teacher := Path(recipe.teacher.model).expanduser()).exists():
        inputs["teacher.model"] = teacher
    for key, source in keyed_sources(recipe.data):
        if (path := Path(source.path).expanduser()).exists():
            inputs[key] = path
        found = find_files(source.path)
        for file in () if found is None else found.files:
            inputs[f"{key} ({file})"] = Path(file)
    if start_from is not None:
        inputs["method.start_from"] = start_from
    return inputs


def start_checkpoint(path: str | None) -> Path | None:
    """The checkpoint that `method.start_from` means: itself, or a run's last."""
    if path is None:
        return None
    folder = Path(path).expanduser()
    found = folder if (folder / FACTORS_FILE).is_file() else last_checkpoint(folder)
    if found is None:
        raise InputError(
            f"method.start_from: no complete checkpoint in `{path}`; expected a run's folder or a checkpoint"
        )
    return found


def _recipe_of(file: Path) -> Recipe | None:
    """The recipe with which a run was begun, if it can still be read."""
    try:
        return load_recipe(str(file))
    except InputError:
        return None


def _as_begun(recipe: Recipe, before: Recipe | None) -> Recipe:
    """The recipe of a resumed run: what it leaves to a machine or a release is what it was when the run was begun."""
    if before is None:
        return recipe
    given, begun = recipe.training.arguments, before.training.arguments
    kept = {name: begun[name] for name in WRITTEN if name in begun and name not in given and name not in OF_A_START}
    for chosen, theirs in (("optim", "muon"), ("lr_scheduler_type", "warmup_steps")):
        if chosen in given:
            kept.pop(theirs, None)
    teacher = {
        name: getattr(before.teacher if getattr(recipe.teacher, name) == "auto" else recipe.teacher, name)
        for name in ("dtype", "attn_implementation")
    }
    student = (before if recipe.student.dtype == "auto" else recipe).student.dtype
    return replace(
        recipe,
        teacher=replace(recipe.teacher, **teacher),
        student=replace(recipe.student, dtype=student),
        training=replace(recipe.training, arguments={**given, **kept}),
    )


def _finished(job: Job, checkpoint: Path) -> str | None:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    steps = job.arguments.max_steps if job.arguments.max_steps > 0 else state.max_steps
    student = checkpoint.parent / "student"
    unfinished = not (student / "config.json").is_file() or (checkpoint.parent / PART).exists()
    if state.global_step < steps or unfinished:
        return None
    return (
        f"The run in {job.folder} is finished: it is at step {state.global_step} of {steps}, and its student is in "
        f"{student}. Nothing was done; raise training.max_steps or training.total_tokens to go on."
    )
