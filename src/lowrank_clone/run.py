"""The main job: from a recipe to a run's folder. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from . import data
from .architecture import decoder_config
from .callbacks import MetricsFile
from .checkpoint import FACTORS_FILE, check_plan, last_checkpoint, load_clone
from .config import Recipe, check_student_overrides, dump_recipe, training_arguments
from .errors import InputError
from .evaluate import LanguageLoss, language_loss
from .export import CardFacts, export_student, teacher_license
from .init import calibrated_start, channels_start
from .method import MethodSchedule, calibration_batches, check_method, clone_settings
from .model import CloneModel
from .plan import Plan, make_plan
from .recompute import checkpointing_options
from .report import draw_curves, read_metrics
from .sizes import remarks
from .teachers import load_config, load_teacher, load_tokenizer
from .trainer import CloneArguments, CloneTrainer

OURS = (
    "student",
    "scratch",
    "inspect",
    "metrics.jsonl",
    "recipe.yaml",
    "versions.json",
    "curves.png",
    "training_args.bin",
)


Start = Mapping[str, Tensor] | Literal["random", "scratch"]


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


@dataclass(frozen=True)
class Result:
    """What a run left: the trained clone, its data, and losses on the validation blocks."""

    clone: CloneModel
    blocks: data.Blocks
    teacher: LanguageLoss
    before: LanguageLoss
    after: LanguageLoss
    tokens: int


def check(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Job:
    """Check a recipe against its teacher, its data and its folder, without reading weights or writing anything.

    Raises:
        InputError: Whatever would stop the run later.
    """
    arguments = _arguments(recipe)
    folder = Path(str(arguments.output_dir))
    checkpoint = _check_folder(folder, resume, overwrite)
    data.check_sources(recipe.data)
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


def make_clone(job: Job, blocks: data.Blocks | None) -> CloneModel:
    """Load the teacher and build the clone that the recipe describes, at its start.

    `blocks` are what the start is computed from; None for a job that resumes, whose factors are loaded afterwards.
    """
    recipe, device = job.recipe, job.arguments.device
    teacher = load_teacher(recipe.teacher, dtype(recipe.teacher.dtype, device), device)
    clone = CloneModel(
        teacher,
        recipe.student.hidden_size,
        student=recipe.student.overrides,
        dtype=dtype(recipe.student.dtype, device),
        start=make_start(job, teacher, blocks),
        seed=job.arguments.seed,
        **clone_settings(job.plan, recipe.method),
    )
    if job.start_from is not None and job.checkpoint is None:
        load_clone(clone, job.start_from)
    if recipe.method.compile:
        clone.compile_layers()
    return clone


def make_start(job: Job, teacher: PreTrainedModel, blocks: data.Blocks | None) -> Start:
    """Where the recipe lets the factors start; what resumes or follows an earlier run loads them later.

    Which factors there are is decided here for a resumed run too: a student from scratch has none of the teacher's.
    """
    method = job.recipe.method
    share_head = method.head_factor == "embedding"
    if method.baseline in ("scratch", "logit_kd"):
        return "scratch"
    if job.checkpoint is not None or job.start_from is not None:
        return "random"
    assert blocks is not None
    if method.baseline == "channels_dense" or method.init == "channels":
        return channels_start(teacher, job.plan, calibration_batches(blocks.train, method), share_head=share_head)
    if method.init == "calibrated":
        batches = calibration_batches(blocks.train, method)
        return calibrated_start(
            teacher,
            job.plan,
            batches,
            basis=method.calibration.basis,
            share_head=share_head,
            progress=not job.arguments.disable_tqdm,
        )
    return "random"


def prepare_data(job: Job) -> data.Blocks:
    """Tokenised and packed blocks. Their labels are their ids, so the column is left out."""
    text = job.plan.teacher_config
    blocks = data.prepare(job.recipe.data, job.tokenizer, max_length=max_length(text), vocab_size=text.vocab_size)
    return data.Blocks(
        blocks.train.select_columns("input_ids"), blocks.validation.select_columns("input_ids"), blocks.report
    )


def execute(job: Job, console: Console) -> Result:
    """Train, evaluate and export; everything that is left is in `job.folder`."""
    console.print(f"[bold]Teacher[/] {job.recipe.teacher.model} -> student of {job.plan.student_width} channels")
    for line in remarks(job.plan):
        console.print(f"  {line}")
    blocks = prepare_data(job)
    for line in blocks.report.lines():
        console.print(f"  {line}", markup=False, highlight=False)
    clone = make_clone(job, blocks)
    _start_folder(job)
    trainer = make_trainer(job, clone, blocks)
    size = job.arguments.per_device_eval_batch_size
    teacher = language_loss(clone.teacher, blocks.validation, size)
    before = language_loss(clone.student, blocks.validation, size)
    console.print(
        f"  validation loss: teacher {teacher.loss:.4f}, student before training {before.loss:.4f} nats/token"
    )
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    after = language_loss(clone.student, blocks.validation, size)
    tokens = int(trainer.state.num_input_tokens_seen)
    result = Result(clone, blocks, teacher, before, after, tokens)
    if trainer.is_world_process_zero():
        finish(job, result)
    return result


def make_trainer(job: Job, clone: CloneModel, blocks: data.Blocks) -> CloneTrainer:
    """The trainer of this run, writing `metrics.jsonl` into its folder."""
    return CloneTrainer(
        clone,
        job.arguments,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        processing_class=job.tokenizer,
        callbacks=[MetricsFile(job.folder / "metrics.jsonl"), MethodSchedule(job.recipe.method)],
    )


def finish(job: Job, result: Result) -> None:
    """Export the student and draw the curves."""
    losses = {
        "teacher": result.teacher.loss,
        "student before training": result.before.loss,
        "student": result.after.loss,
    }
    facts = CardFacts(job.recipe.teacher.model, teacher_license(job.recipe.teacher.model), result.tokens, losses)
    export_student(result.clone, job.folder / "student", job.tokenizer, job.recipe, facts)
    draw_curves(read_metrics(job.folder / "metrics.jsonl"), job.folder / "curves.png", {"teacher": result.teacher.loss})


def dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a recipe names; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    return torch.bfloat16 if native else torch.float32


def _arguments(recipe: Recipe) -> CloneArguments:
    # The world's size is known only to an arguments object, and the number of steps depends on it.
    fields: dict[str, Any] = {"report_to": "none", "disable_tqdm": not sys.stderr.isatty()}
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


def _start_folder(job: Job) -> None:
    """Clear what an earlier run left (only what this library writes) and note what this one is."""
    if not job.arguments.should_save:
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.checkpoint is None:
        for old in [*job.folder.glob("checkpoint-*"), *(job.folder / name for name in OURS)]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    (job.folder / "recipe.yaml").write_text(dump_recipe(job.recipe), encoding="utf-8")
    packages = ("lowrank-clone", "torch", "transformers", "accelerate", "datasets", "tokenizers")
    versions = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
    (job.folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
