"""The main job: from a recipe to a run's folder. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from ..data.prepare import Blocks, prepare
from ..model import CloneModel
from ..objective.evaluate import LanguageLoss, language_loss
from ..plan.sizes import remarks
from ..recipe.load import dump_recipe
from ..recipe.method import calibration_batches, clone_settings
from ..recipe.schedule import MethodSchedule
from ..report.curves import draw_curves
from ..starts.registry import StartInputs, make_start
from ..training.checkpoint import load_clone
from ..training.metrics import MetricsFile, read_metrics
from ..training.trainer import CloneTrainer
from .export import CardFacts, export_student, teacher_license
from .job import Job, max_length, resolve_dtype
from .teachers import load_teacher

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
class Result:
    """What a run left: the trained clone, its data, and losses on the validation blocks."""

    clone: CloneModel
    blocks: Blocks
    teacher: LanguageLoss
    before: LanguageLoss
    after: LanguageLoss
    tokens: int


def make_clone(job: Job, blocks: Blocks | None) -> CloneModel:
    """Load the teacher and build the clone that the recipe describes, at its start.

    `blocks` are what the start is computed from; None for a job that resumes, whose factors are loaded afterwards.
    """
    recipe, device = job.recipe, job.arguments.device
    teacher = load_teacher(recipe.teacher, resolve_dtype(recipe.teacher.dtype, device), device)
    clone = CloneModel(
        teacher,
        recipe.student.hidden_size,
        student=recipe.student.overrides,
        dtype=resolve_dtype(recipe.student.dtype, device),
        start=choose_start(job, teacher, blocks),
        seed=job.arguments.seed,
        **clone_settings(job.plan, recipe.method),
    )
    if job.start_from is not None and job.checkpoint is None:
        load_clone(clone, job.start_from)
    if recipe.method.compile:
        clone.compile_layers()
    return clone


def choose_start(job: Job, teacher: PreTrainedModel, blocks: Blocks | None) -> Start:
    """Where the recipe lets the factors start.

    A resumed run passes through here too: whether factors come from the teacher (`random`, until the checkpoint's are
    loaded) or not (`scratch`) must match its checkpoint.
    """
    method, arguments = job.recipe.method, job.arguments
    if method.baseline in ("scratch", "logit_kd"):
        return "scratch"
    if job.checkpoint is not None or job.start_from is not None:
        return "random"
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


def prepare_data(job: Job) -> Blocks:
    """Tokenised and packed blocks. Their labels are their ids, so the column is left out."""
    text = job.plan.teacher_config
    blocks = prepare(job.recipe.data, job.tokenizer, max_length=max_length(text), vocab_size=text.vocab_size)
    return Blocks(
        blocks.train.select_columns("input_ids"), blocks.validation.select_columns("input_ids"), blocks.report
    )


def execute(job: Job, console: Console) -> Result:
    """Train, evaluate and export; everything that is left is in `job.folder`."""
    console.print(f"Teacher {job.recipe.teacher.model} -> student of {job.plan.student_width} channels")
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


def make_trainer(job: Job, clone: CloneModel, blocks: Blocks) -> CloneTrainer:
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
