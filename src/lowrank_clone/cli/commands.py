"""What each command does, given parsed arguments."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub
import transformers
from rich.table import Table
from transformers import TrainerState

from ..errors import InputError
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe
from ..training.checkpoint import last_checkpoint, load_clone
from .tables import console, print_plan, print_sheet

if TYPE_CHECKING:
    from ..run.job import Job


def quiet_bars() -> None:
    """No progress bars of the libraries' where nobody watches them (a file, a pipe)."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def train(arguments: Namespace) -> None:
    """`lrc train RECIPE [section.key=value ...] [--dry-run] [--resume | --overwrite]`"""
    from ..run.execute import execute
    from ..run.job import check

    recipe = _recipe(arguments)
    job = check(recipe, resume=arguments.resume, overwrite=arguments.overwrite)
    if arguments.dry_run:
        print_plan(recipe, job.plan)
        console.print("Everything that can be checked without weights is in order; nothing was run.")
        return
    result = execute(job, console)
    console.print(
        f"Validation loss {result.before.loss:.4f} -> {result.after.loss:.4f} nats/token after {result.tokens:,} "
        f"tokens (teacher {result.teacher.loss:.4f}). The student is in {job.folder / 'student'}."
    )


def plan(arguments: Namespace) -> None:
    """`lrc plan RECIPE [section.key=value ...]`"""
    from ..run.job import plan_of

    recipe = _recipe(arguments)
    print_plan(recipe, plan_of(recipe))


def _recipe(arguments: Namespace) -> Recipe:
    """The recipe of a command, with the installed teacher where the shipped one says `demo`."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.teacher.model != "demo" or Path("demo").exists():
        return recipe
    from ..run.demo import teacher_file

    return replace(recipe, teacher=replace(recipe.teacher, model=str(teacher_file())))


def families(arguments: Namespace) -> None:
    """`lrc families [TYPE] [--markdown]`"""
    from ..plan.families import survey, survey_all, to_markdown

    found = [survey(arguments.model_type)] if arguments.model_type else survey_all()
    if arguments.markdown:
        print(to_markdown(found))
        return
    table = Table("type", "supported", "taps", "remark", title="Causal language models of the installed transformers")
    for family in found:
        table.add_row(family.model_type, "yes" if family.supported else "no", str(family.taps or ""), family.reason)
    console.print(table)
    console.print(f"{sum(family.supported for family in found)} of {len(found)} types can be cloned.")


def export(arguments: Namespace) -> None:
    """`lrc export RUN OUTPUT`"""
    from ..run.execute import make_clone
    from ..run.export import CardFacts, export_student, teacher_license

    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`{output}` is not empty; give a new folder")
    saved = _saved(Path(arguments.run))
    clone = make_clone(saved.job, None)
    load_clone(clone, saved.checkpoint)
    losses = {f"student at step {line['step']}": line["eval_lm"] for line in saved.metrics if "eval_lm" in line}
    model = saved.job.recipe.teacher.model
    facts = CardFacts(model, teacher_license(model), saved.tokens, losses)
    export_student(clone, output, saved.job.tokenizer, saved.job.recipe, facts)
    console.print(f"The student of step {saved.step} is in {output}.")


def inspect(arguments: Namespace) -> None:
    """`lrc inspect RUN [--tokens N] [--start] [--no-html]`"""
    from ..inspection.activations import relative_errors
    from ..inspection.figures import draw_inspection
    from ..inspection.inspect import inspect_pair
    from ..inspection.page import RunFacts, write_page
    from ..inspection.sheets import sheets
    from ..run.execute import make_clone, prepare_data

    run = Path(arguments.run)
    if arguments.tokens < 1:
        raise InputError(f"--tokens: got {arguments.tokens}, expected a positive number of validation tokens")
    saved = _saved(run, "method.compile=false")
    job, recipe = saved.job, saved.job.recipe
    prepared = prepare_data(job)
    blocks = prepared.validation
    blocks = blocks.select(range(min(len(blocks), -(-arguments.tokens // recipe.data.sequence_length))))
    with console.status("Loading the models") as status:
        clone = make_clone(replace(job, checkpoint=None) if arguments.start else job, prepared)
        pair = (clone.teacher, clone.student, clone.plan, clone.factors, blocks)
        start = relative_errors(*pair) if arguments.start else ()
        load_clone(clone, saved.checkpoint)
        inspection = inspect_pair(*pair, progress=lambda step: status.update(f"Measuring: {step}"))
        inspection = replace(inspection, start_errors=start)
    for sheet in sheets(inspection):
        print_sheet(sheet)
    figures = draw_inspection(inspection, saved.metrics, run / "inspect")
    if not arguments.no_html:
        today, ours = date.today().isoformat(), version("lowrank-clone")
        facts = RunFacts(str(run), recipe.teacher.model, saved.checkpoint.name, saved.tokens, today, ours)
        write_page(inspection, facts, figures, run / "inspect" / "report.html")
    console.print(f"Figures{'' if arguments.no_html else ' and report.html'} are in {run / 'inspect'}.")


@dataclass(frozen=True)
class _Saved:
    """The last complete checkpoint of a run: the job that resumes there, and what was counted and logged until then."""

    job: Job
    checkpoint: Path
    step: int
    tokens: int
    metrics: list[dict[str, Any]]


def _saved(run: Path, *overrides: str) -> _Saved:
    """Where the run in this folder stands.

    Raises:
        InputError: It is no run's folder, or nothing is saved there yet.
    """
    from ..run.job import check
    from ..training.metrics import read_metrics

    if not (run / "recipe.yaml").is_file():
        raise InputError(f"`{run}` holds no recipe.yaml; expected the folder of a run")
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise InputError(f"`{run}` holds no complete checkpoint; let the run go on until it has saved one")
    recipe = load_recipe(str(run / "recipe.yaml"), [f"training.output_dir={json.dumps(str(run))}", *overrides])
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    file = run / "metrics.jsonl"
    lines = read_metrics(file) if file.is_file() else []
    metrics = [line for line in lines if line["step"] <= state.global_step]
    return _Saved(check(recipe, resume=True), checkpoint, state.global_step, state.num_input_tokens_seen, metrics)


def demo(arguments: Namespace) -> None:
    """`lrc demo [section.key=value ...]`"""
    from ..run.demo import run_demo

    run_demo(arguments.overrides, console)


COMMANDS = {"train": train, "plan": plan, "families": families, "export": export, "inspect": inspect, "demo": demo}
