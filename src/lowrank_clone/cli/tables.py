"""Tables and reports on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import datasets
import huggingface_hub
import transformers
from rich.console import Console
from rich.table import Table

from ..cost.estimate import Cost, Recompute
from ..objective.probe import foresee_taps
from ..plan.roles import Plan
from ..plan.sizes import remarks, size_rows
from ..recipe.method import last_kinds
from ..recipe.schema import Recipe
from ..recipe.training import batch_sizes, training_arguments
from ..run.estimates import estimator, recomputation

if TYPE_CHECKING:
    from ..inspection.sheets import Sheet

# Tables and reports go to standard output, so that they can be piped; there no column needs to be cut short. Markup is
# off, since paths and names may hold brackets.
_WIDE = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
# Of several processes (torchrun) the first one speaks.
_QUIET = os.environ.get("RANK", "0") != "0"
console = Console(highlight=False, soft_wrap=True, markup=False, width=_WIDE, quiet=_QUIET)


def quiet_bars() -> None:
    """No progress bars of the libraries' where nobody watches them (a file, a pipe)."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()


def new_table(*columns: str, **options: Any) -> Table:
    """A table whose cells are folded, never cut, where the terminal is narrow."""
    table = Table(**options)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_plan(recipe: Recipe, plan: Plan) -> Cost:
    """Sizes by group: matrices, deployed and trained numbers, and how much of the deployed ones training can reach.

    Returns:
        What a step costs, as it was printed.
    """
    arguments = training_arguments(recipe)
    recomputed = recomputation(arguments, plan)
    kinds = last_kinds(plan, recipe.method)
    rows = size_rows(plan, kinds)
    trained = sum(row.trained for row in rows)
    console.print(
        f"{plan.teacher_config.model_type}: residual width {plan.teacher_width} -> {plan.student_width}, "
        f"{len(plan.taps)} taps, {plan.deployed_parameters:,} deployed and {trained:,} trained parameters"
    )
    for line in remarks(plan):
        console.print(line)
    if recipe.method.clone_weight != 0 and (reasons := foresee_taps(plan)):
        console.print(f"Activations that are not compared: {reasons}.")
    table = new_table("group", "kind", "tensors", "deployed parameters", "trained parameters", "reachable share")
    for row in rows:
        share = "" if row.reachable is None else f"{row.reachable:.1%}"
        kind = "" if row.reachable is None else kinds.get(row.group, "projected")
        table.add_row(row.group, kind, f"{row.tensors:,}", f"{row.deployed:,}", f"{row.trained:,}", share)
    console.print(table)
    if arguments.get("muon"):
        console.print("Matrices are trained with Muon, all else with AdamW.")
    return print_cost(recipe, plan, arguments, recomputed)


def print_cost(recipe: Recipe, plan: Plan, arguments: Mapping[str, Any], recomputed: dict[str, Any]) -> Cost:
    """FLOPs and memory by the cost model, which are returned. `arguments` are the recipe's (`training_arguments`)."""
    batch, accumulation = batch_sizes(recipe)
    estimated = estimator(recipe, plan, arguments)
    cost = estimated(**recomputed)
    where = f"{batch} x {recipe.data.sequence_length} tokens a micro-batch, {accumulation} a step, {cost.dtype}"
    table = new_table("cost", "figure", title=f"Cost model, one accelerator: {where}")
    for label, figure in cost.rows():
        table.add_row(label, figure)
    console.print(table)
    off, elementwise, whole = (estimated(recompute=way).peak_bytes / 2**30 for way in get_args(Recompute))
    buckets = cost.memory["gradients of the student"] / 2**30
    console.print(
        f"Peak by training.activation_checkpointing: {off:,.1f} GiB without, {elementwise:,.1f} with "
        f"recompute: elementwise, {whole:,.1f} with all. DDP's buckets hold the gradients once more: {buckets:,.1f}."
    )
    return cost


def print_sheet(sheet: Sheet) -> None:
    """A table with its unit and source under it."""
    table = Table(title=sheet.title, caption=sheet.note, caption_justify="left", title_justify="left")
    for i, column in enumerate(sheet.columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table)
