"""From a checked recipe to the clone it describes: the teacher loaded, the start computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.prepare import Blocks
from ..model import CloneModel
from ..plan.roles import Plan
from ..recipe.method import calibration_batches, clone_settings
from ..recipe.schema import Recipe
from ..starts.registry import StartInputs, make_start
from ..training.checkpoint import start_clone
from .checkpoint_fit import FROM_SCRATCH
from .job import Job
from .resolve import resolve_dtype
from .teachers import load_teacher

Start = Mapping[str, Tensor] | Literal["random", "scratch"]


def make_clone(job: Job, blocks: Blocks | None) -> CloneModel:
    """Load the teacher and build the clone that the recipe describes, at its start.

    Args:
        blocks: What the start is computed from; None for a job that resumes, whose factors are loaded afterwards.
    """
    recipe, device = job.recipe, job.arguments.device
    teacher = load_teacher(recipe.teacher, resolve_dtype(recipe.teacher.dtype, device), device)
    # What goes on takes its kinds from the checkpoint, whatever the recipe switches at its next step.
    kinds = None if job.checkpoint is None else dict[str, str]()
    clone = wrap(teacher, recipe, job.plan, choose_start(job, teacher, blocks), job.arguments.seed, kinds)
    if job.start_from is not None:
        start_clone(clone, job.start_from)
    if recipe.method.compile:
        clone.compile_layers()
    return clone


def wrap(
    teacher: PreTrainedModel,
    recipe: Recipe,
    plan: Plan,
    start: Start,
    seed: int,
    kinds: Mapping[str, str] | None = None,
) -> CloneModel:
    """The clone of a loaded teacher, of the recipe's kinds at its first step unless others are given."""
    settings = clone_settings(plan, recipe.method)
    return CloneModel(
        teacher,
        recipe.student.hidden_size,
        student=recipe.student.overrides,
        dtype=resolve_dtype(recipe.student.dtype, teacher.device),
        start=start,
        seed=seed,
        **settings | ({} if kinds is None else {"parameterization": kinds}),
    )


def to_be_loaded(recipe: Recipe) -> Literal["random", "scratch"]:
    """The start of a clone whose factors come from a checkpoint: whether it has any must match the checkpoint."""
    return "scratch" if recipe.method.baseline in FROM_SCRATCH else "random"


def is_calibrated(job: Job) -> bool:
    """Whether this job's start is computed from text, which takes a while."""
    method = job.recipe.method
    if job.checkpoint is not None or job.start_from is not None or method.baseline in FROM_SCRATCH:
        return False
    return method.baseline == "channels_dense" or method.init != "random"


def choose_start(job: Job, teacher: PreTrainedModel, blocks: Blocks | None) -> Start:
    """Where the recipe lets the factors start; what resumes or follows an earlier run loads them later.

    Of several processes the first one's start is that of all, so the others compute none.
    """
    method, arguments = job.recipe.method, job.arguments
    if arguments.process_index > 0 and method.baseline not in FROM_SCRATCH:
        return "random"
    if job.checkpoint is not None or job.start_from is not None or method.baseline in FROM_SCRATCH:
        return to_be_loaded(job.recipe)
    assert blocks is not None
    inputs = StartInputs(
        teacher,
        job.plan,
        calibration_batches(blocks.train, method),
        share_head=method.head_factor == "embedding",
        factor_std=method.factor_std,
        seed=arguments.seed,
        basis=method.calibration.basis,
        progress=arguments.process_index == 0 and not arguments.disable_tqdm,
    )
    return make_start("channels" if method.baseline == "channels_dense" else method.init, inputs)


def device_of(recipe: Recipe) -> torch.device:
    """Where models are loaded outside of training: the accelerator, unless the recipe says `use_cpu`."""
    found = torch.accelerator.current_accelerator()
    return torch.device("cpu") if found is None or recipe.training.arguments.get("use_cpu") else found
