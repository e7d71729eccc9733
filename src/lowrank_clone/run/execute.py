"""The main job: from a checked recipe to a run's folder."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..data.prepare import Blocks, prepare
from ..errors import InputError
from ..model import CloneModel
from ..objective.evaluate import LanguageLoss, language_loss
from ..plan.sizes import remarks
from ..recipe.load import dump_recipe
from ..recipe.schedule import MethodSchedule
from ..report.curves import draw_curves
from ..report.html import page
from ..training.checkpoint import load_clone
from ..training.fully_sharded import is_sharded
from ..training.interrupt import Interruption, interruptible
from ..training.metrics import MetricsFile, read_metrics
from ..training.saving import StartCheckpoint
from ..training.speed import Speed
from ..training.trainer import CloneTrainer
from .bos import say_bos_gap
from .build_clone import is_calibrated, make_clone
from .disk import disk_errors
from .estimates import memory_advice
from .export import CardFacts, export_student, teacher_license
from .folder import RunFolder
from .forecast import check_blocks, run_tokens
from .going_on import FolderKeeper, MissedEvaluation, state_of, take_end
from .job import Job, max_length
from .manifest import move_in
from .output_folder import file_beside, state_of_folder
from .redaction import without_secrets
from .report import REPORT_FILE, RunReader
from .results import RESULTS_FILE, Results, carry_over, dump_results, measure_data, read_results
from .samples import SAMPLES_FILE, measure_samples
from .trackers import place_trackers

_log = logging.getLogger("lowrank_clone")
_HEAD_START = 1.0  # seconds, so that missing shards are made by the process that shows how far they are


@dataclass(frozen=True)
class Result:
    """What a run left: the trained clone, its data, and losses on the validation blocks.

    `before` is the student's before training, None where the run was not evaluated then.
    """

    clone: CloneModel
    blocks: Blocks
    teacher: LanguageLoss
    before: LanguageLoss | None
    after: LanguageLoss
    tokens: int


def prepare_data(job: Job, progress: bool = False) -> Blocks:
    """The blocks of a job, from shards that are there or are made now; any number of processes may ask at once."""
    text = job.plan.teacher_config
    with disk_errors("data: reading and writing shards", "make room, or set data.shards to a folder on another disk"):
        return prepare(
            job.recipe.data,
            job.tokenizer,
            max_length=max_length(text),
            vocab_size=text.vocab_size,
            run_tokens=run_tokens(job.recipe, job.arguments),
            progress=progress,
        )


def execute(job: Job, console: Console) -> Result:
    """Train, evaluate and export; everything that is left is in `job.folder`.

    Raises:
        InputError: The data, the weights or the disk are not as they must be; an older run is then as it was.
        Interrupted: By Ctrl-C or SIGTERM, after saving what was trained.
        NonFiniteLoss: After saving the last good state.
    """
    folder = RunFolder(job.folder, job.checkpoint, leader=job.arguments.process_index == 0)
    with interruptible(folder.how_to_go_on) as interruption, folder:
        return _execute(job, folder, interruption, console)


def _execute(job: Job, folder: RunFolder, interruption: Interruption, console: Console) -> Result:
    if folder.leader and job.seen is not None and job.seen != state_of_folder(job.folder):
        raise InputError(
            f"training.output_dir: a run in `{job.folder}` went on while this one was checked; give the command again"
        )
    _say(job.remarks, folder)
    _wait(job)  # all have looked at the folder before one writes into it
    texts = {"recipe.yaml": dump_recipe(without_secrets(job.recipe)), "versions.json": _versions(None)}
    folder.begin(texts)
    console.print(f"Teacher {job.recipe.teacher.model} -> student of {job.plan.student_width} channels")
    for line in remarks(job.plan):
        console.print(f"  {line}")
    if folder.replaces:
        console.print(f"  until its first checkpoint this run writes to {folder.path}, and the old one is kept")
    if not folder.leader:
        time.sleep(_HEAD_START)
    blocks = prepare_data(job, progress=folder.leader)
    for line in blocks.report.lines():
        console.print(f"  {line}", markup=False, highlight=False)
    check_blocks(job, len(blocks.train))
    results = measure_data(blocks, job.arguments)
    if job.checkpoint is not None:
        old, step = read_results(file_beside(job.checkpoint, RESULTS_FILE).parent), state_of(job.checkpoint).global_step
        results, said = carry_over(old, results, step, "data" in job.allowed)
        _say(said, folder)
        results = results.with_changes(step, [*job.remarks, *said])
    clone = make_clone(job, blocks)
    if job.checkpoint is not None:
        load_clone(clone, job.checkpoint)  # which refuses another teacher's, before anything is written
        _wait(job)
        with disk_errors(f"could not write into `{job.folder}`"):
            checkpoint = folder.take_place()
            _wait(job)
            folder.write("recipe.yaml", texts["recipe.yaml"])
            folder.write("versions.json", _versions(job.folder / "versions.json"))
        job = replace(job, checkpoint=checkpoint)
    return _train(job, folder, interruption, console, clone, blocks, results)


def _train(
    job: Job,
    folder: RunFolder,
    interruption: Interruption,
    console: Console,
    clone: CloneModel,
    blocks: Blocks,
    results: Results,
) -> Result:
    size = job.arguments.per_device_eval_batch_size
    teacher = results.teacher or language_loss(clone.teacher, blocks.validation, size)
    results = replace(results, teacher=teacher)
    console.print(f"  validation loss of the teacher: {teacher.loss:.4f} nats/token")
    if folder.leader and job.checkpoint is None:
        say_bos_gap(clone.teacher, job.tokenizer, blocks.validation, console)
    with disk_errors(f"could not write into `{folder.path}`", folder.after_a_full_disk):
        folder.write(RESULTS_FILE, dump_results(results))
        job.arguments.output_dir = str(folder.path)
        trainer = make_trainer(job, clone, blocks)
        if (look := place_trackers(trainer, job.folder.resolve())) is not None:
            console.print(f"  {look}")
        with memory_advice(job.recipe, job.plan):
            run_trainer(trainer, job, folder, interruption)
        step = _step_of_the_student(trainer)
        results = results.with_history(trainer.state.log_history)
        if step not in results.student:
            results = results.with_history([{"step": step, **trainer.evaluate()}])
        folder.replace_older(trainer)
        folder.write(RESULTS_FILE, dump_results(results))
        seen = int(trainer.state.num_input_tokens_seen)
        losses = {at: LanguageLoss(loss, teacher.tokens) for at, loss in results.student.items()}
        weights = trainer.whole_student() if is_sharded(clone) else None
        if trainer.is_world_process_zero():
            facts = CardFacts(job.recipe.teacher.model, teacher_license(job.recipe.teacher.model), seen)
            finish(job, folder, clone, replace(facts, losses=results.table(step)), blocks, weights)
    return Result(clone, blocks, teacher, losses.get(0), losses[step], seen)


def make_trainer(job: Job, clone: CloneModel, blocks: Blocks) -> CloneTrainer:
    """The trainer of this run, writing `metrics.jsonl` into its arguments' output folder."""
    speed = Speed()
    return CloneTrainer(
        clone,
        job.arguments,
        train_dataset=blocks.train,
        eval_dataset=blocks.validation,
        processing_class=job.tokenizer,
        callbacks=[
            speed,
            MetricsFile(Path(str(job.arguments.output_dir)) / "metrics.jsonl", speed),
            MethodSchedule(job.recipe.method),
        ],
    )


def run_trainer(trainer: CloneTrainer, job: Job, folder: RunFolder, interruption: Interruption) -> None:
    """Train to the end, or take the state of a checkpoint that is there already."""

    def save() -> None:
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    trainer.add_callback(FolderKeeper(folder, trainer))
    interruption.save = save
    trainer.add_callback(interruption)
    if is_calibrated(job):
        trainer.add_callback(StartCheckpoint(save))
    if job.checkpoint is None:
        trainer.train()
        return
    state = state_of(job.checkpoint)
    if state.global_step > 0:
        trainer.args.eval_on_start = False
        trainer.add_callback(MissedEvaluation(trainer))
    steps = job.arguments.max_steps if job.arguments.max_steps > 0 else state.max_steps
    if state.global_step >= steps:  # Trainer would do one step more
        take_end(trainer, state)
        return
    trainer.train(resume_from_checkpoint=str(job.checkpoint))


def finish(
    job: Job,
    folder: RunFolder,
    clone: CloneModel,
    facts: CardFacts,
    blocks: Blocks,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Draw the curves, write the report and export the student, which is last: by it a finished run is known.

    Args:
        weights: The student's, where this process's clone holds parts of them only and can't run by itself.
    """
    levels = {"teacher": facts.losses["teacher"]}
    draw_curves(read_metrics(folder.path / "metrics.jsonl"), folder.path / "curves.png", levels)
    folder.add([folder.path / "curves.png"])
    if weights is None:
        folder.write(SAMPLES_FILE, measure_samples(clone, blocks.validation, job.tokenizer))
    else:
        _log.warning("under FSDP2 the report shows no texts and no ranks: no process has both models whole")
    folder.write(REPORT_FILE, page([RunReader(folder.path, folder.folder.resolve().name).read(finished=True)]))
    put = partial(move_in, last="config.json")
    export_student(clone, folder.path / "student", job.tokenizer, job.recipe, facts, put, weights)


def _say(lines: Iterable[str], folder: RunFolder) -> None:
    for line in lines if folder.leader else ():
        _log.warning("--resume: %s", line)


def _wait(job: Job) -> None:
    """For all processes."""
    if job.arguments.world_size > 1:
        torch.distributed.barrier()


def _step_of_the_student(trainer: CloneTrainer) -> int:
    """The step whose student is in the clone after training: the last one, or the best if that was asked for."""
    best = trainer.state.best_global_step
    return best if trainer.args.load_best_model_at_end and best is not None else trainer.state.global_step


def _versions(before: Path | None) -> str:
    """The text of versions.json: what this run is made with, below it what it was resumed with."""
    packages = ("lowrank-clone", "torch", "transformers", "accelerate", "datasets", "tokenizers")
    now: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
    try:
        first = None if before is None else json.loads(before.read_bytes())
    except (OSError, ValueError, RecursionError):
        first = None
    if isinstance(first, dict):
        resumed = first.get("resumed")
        now = {**first, "resumed": [*(resumed if isinstance(resumed, list) else []), now]}
    return json.dumps(now, indent=2) + "\n"
