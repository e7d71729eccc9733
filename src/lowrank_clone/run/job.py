"""A recipe checked against its teacher, its data and its folder, before weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..data.check import check_sources
from ..errors import InputError
from ..execution.checkpointing import checkpointing_options
from ..plan.architecture import decoder_config
from ..plan.classify import make_plan
from ..plan.roles import Plan
from ..recipe.method import check_method
from ..recipe.schema import Recipe
from ..recipe.student import check_student_overrides
from ..recipe.training import training_arguments
from ..training.arguments import CloneArguments
from ..training.checkpoint import FACTORS_FILE, check_plan, last_checkpoint
from .teachers import load_config, load_tokenizer


@dataclass(frozen=True)
class Job:
    """A checked run that has not started; `checkpoint` is what it resumes, `start_from` whose factors it begins at."""

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    arguments: CloneArguments
    folder: Path
    checkpoint: Path | None
    start_from: Path | None


def check(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Job:
    """Check a recipe against its teacher, its data and its folder, without reading weights or writing anything.

    Raises:
        InputError: Whatever would stop the run later.
    """
    arguments = _arguments(recipe)
    folder = Path(str(arguments.output_dir))
    checkpoint = _check_folder(folder, resume, overwrite)
    check_sources(recipe.data)
    plan = plan_of(recipe, arguments.max_steps if arguments.max_steps > 0 else None)
    if arguments.activation_checkpointing:
        options: Any = arguments.activation_checkpointing_kwargs
        checkpointing_options(plan.student_config, options)
    start_from = _checkpoint_of(recipe.method.start_from)
    for needed in (checkpoint, start_from):
        if needed is not None:
            check_plan(plan, needed)
    tokenizer = load_tokenizer(recipe.teacher)
    limit = max_length(plan.teacher_config)
    if limit is not None and recipe.data.sequence_length > limit:
        raise InputError(
            f"data.sequence_length: got {recipe.data.sequence_length}, the model takes at most {limit} tokens; lower it"
        )
    return Job(recipe, plan, tokenizer, arguments, folder, checkpoint, start_from)


def plan_of(recipe: Recipe, max_steps: int | None = None) -> Plan:
    """The plan of a recipe, with all checked that the teacher's config alone decides.

    Raises:
        InputError: The teacher, the student's overrides or the method do not go together.
    """
    config = load_config(recipe.teacher)
    check_student_overrides(recipe.student.overrides, decoder_config(config).to_dict())
    plan = make_plan(config, recipe.student.hidden_size, recipe.student.overrides)
    check_method(plan, recipe.method, max_steps)
    return plan


def max_length(config: PretrainedConfig) -> int | None:
    """The longest sequence that the teacher's config admits, or None where it names no limit."""
    limit = config.to_dict().get("max_position_embeddings")
    return int(limit) if limit is not None else None


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a recipe names; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    return torch.bfloat16 if native else torch.float32


def _arguments(recipe: Recipe) -> CloneArguments:
    # The world's size is known only to an arguments object, and the number of steps depends on it.
    fields: dict[str, Any] = {"report_to": "none"}
    fields |= recipe.training.arguments
    fields.setdefault("output_dir", "runs/train")
    fields.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    try:
        world_size = CloneArguments(**fields).world_size
        return CloneArguments(**(fields | training_arguments(recipe, world_size)))
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training: {' '.join(str(error).split())}") from error


def _checkpoint_of(path: str | None) -> Path | None:
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


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"training.output_dir: `{folder}` is a file; expected a folder")
    if resume:
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            raise InputError(f"--resume: no complete checkpoint in `{folder}`; run without --resume to start anew")
        return checkpoint
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"training.output_dir: `{folder}` is not empty; give --resume to go on, --overwrite to replace that run, "
            "or another training.output_dir"
        )
    return None
