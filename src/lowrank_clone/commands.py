"""What each command does, given parsed arguments."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import datasets
import huggingface_hub
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import TrainerState

from .checkpoint import last_checkpoint, load_clone
from .config import Recipe, batch_sizes, load_recipe, training_arguments
from .cost import Recompute, estimate
from .errors import InputError
from .method import clone_settings, last_kinds
from .plan import Plan
from .recompute import checkpointing_options
from .sizes import remarks, size_rows

if TYPE_CHECKING:
    from .report import Sheet
    from .run import Job

# Tables and reports go to standard output, so that they can be piped.
console = Console(highlight=False, soft_wrap=True)


def quiet_bars() -> None:
    """No progress bars of the libraries' where nobody watches them (a file, a pipe)."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def train(arguments: Namespace) -> None:
    """`lrc train RECIPE [section.key=value ...] [--dry-run] [--resume | --overwrite]`"""
    from .run import check, execute

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
    from .run import plan_of

    recipe = _recipe(arguments)
    print_plan(recipe, plan_of(recipe))


def _recipe(arguments: Namespace) -> Recipe:
    """The recipe of a command, with the installed teacher where the shipped one says `demo`."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.teacher.model != "demo" or Path("demo").exists():
        return recipe
    from .demo import teacher_file

    return replace(recipe, teacher=replace(recipe.teacher, model=str(teacher_file())))


def families(arguments: Namespace) -> None:
    """`lrc families [TYPE] [--markdown]`"""
    from .families import survey, survey_all, to_markdown

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
    from .export import CardFacts, export_student, teacher_license
    from .run import make_clone

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
    from .diagnostics import inspect_pair, relative_errors
    from .report import RunFacts, draw_inspection, sheets, write_page
    from .run import make_clone, prepare_data

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
    from .report import read_metrics
    from .run import check

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
    from .demo import run_demo

    run_demo(arguments.overrides, console)


def print_plan(recipe: Recipe, plan: Plan) -> None:
    """Sizes by group: matrices, deployed and trained numbers, and how much of the deployed ones training can reach."""
    recomputed = recomputation(recipe, plan)
    kinds = last_kinds(plan, recipe.method)
    rows = size_rows(plan, kinds)
    trained = sum(row.trained for row in rows)
    console.print(
        f"{plan.teacher_config.model_type}: residual width {plan.teacher_width} -> {plan.student_width}, "
        f"{len(plan.taps)} taps, {plan.deployed_parameters:,} deployed and {trained:,} trained parameters"
    )
    for line in remarks(plan):
        console.print(line)
    table = Table("group", "kind", "tensors", "deployed parameters", "trained parameters", "reachable share")
    for row in rows:
        share = "" if row.reachable is None else f"{row.reachable:.1%}"
        kind = "" if row.reachable is None else kinds.get(row.group, "projected")
        table.add_row(row.group, kind, f"{row.tensors:,}", f"{row.deployed:,}", f"{row.trained:,}", share)
    console.print(table)
    if training_arguments(recipe).get("muon"):
        console.print("Matrices are trained with Muon, all else with AdamW.")
    print_cost(recipe, plan, recomputed)


def recomputation(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What the recipe's activation checkpointing is to the cost model.

    Raises:
        InputError: Its options are not usable.
    """
    arguments = training_arguments(recipe)
    # The second is transformers' older name of the first.
    names = ("activation_checkpointing", "gradient_checkpointing")
    if not any(arguments.get(name) for name in names):
        return {"recompute": "nothing"}
    options: dict[str, Any] = next((given for name in names if (given := arguments.get(f"{name}_kwargs"))), {})
    checkpointing_options(plan.student_config, options)
    return {"recompute": options.get("recompute", "all"), "every_n_layers": options.get("every_n_layers", 1)}


def print_cost(recipe: Recipe, plan: Plan, recomputed: dict[str, Any]) -> None:
    """FLOPs and memory by the cost model, and hours for the recipe's tokens on one named accelerator."""
    arguments = training_arguments(recipe)
    batch, accumulation = batch_sizes(recipe)
    settings = clone_settings(plan, recipe.method)
    compared = [tap for tap in plan.taps if settings["clone_weight"] != 0 and settings["taps"](tap)]
    estimated = partial(
        estimate,
        plan,
        micro_batch=batch,
        sequence_length=recipe.data.sequence_length,
        accumulation=accumulation,
        dtype=torch.float32 if recipe.student.dtype == "float32" else torch.bfloat16,
        parameterization=last_kinds(plan, recipe.method),
        attn_out_tap=recipe.method.attn_out_tap,
        taps=compared,
        optimizer_states=1 if arguments.get("muon", False) else 2,
    )
    cost = estimated(**recomputed)
    where = f"{batch} x {recipe.data.sequence_length} tokens a micro-batch, {accumulation} a step, {cost.dtype}"
    table = Table("cost", "figure", title=f"Cost model, one accelerator: {where}")
    for label, figure in cost.rows():
        table.add_row(label, figure)
    console.print(table)
    off, elementwise, whole = (estimated(recompute=way).peak_bytes / 2**30 for way in get_args(Recompute))
    buckets = cost.memory["gradients of the student"] / 2**30
    console.print(
        f"Peak by training.activation_checkpointing: {off:,.1f} GiB without, {elementwise:,.1f} with "
        f"recompute: elementwise, {whole:,.1f} with all. DDP's buckets hold the gradients once more: {buckets:,.1f}."
    )
    if recipe.training.total_tokens is not None:
        name, share = "h100-80gb", 0.4
        run = cost.run(recipe.training.total_tokens, name, utilisation=share)
        fits = "fits" if run.fits else "does not fit"
        console.print(
            f"{recipe.training.total_tokens:,} tokens on one {name} at {share:.0%} of its data sheet's dense peak: "
            f"{run.hours:,.1f} hours, {run.kilowatt_hours:,.1f} kWh of the board; the memory {fits}. Predicted, not "
            "measured on such a card."
        )


def print_sheet(sheet: Sheet) -> None:
    """A table with its unit and source under it."""
    table = Table(title=sheet.title, caption=sheet.note, caption_justify="left", title_justify="left")
    for i, column in enumerate(sheet.columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table)


COMMANDS = {"train": train, "plan": plan, "families": families, "export": export, "inspect": inspect, "demo": demo}
