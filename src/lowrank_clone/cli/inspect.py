"""`lrc inspect`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from ..errors import InputError
from ..inspection.activations import relative_errors
from ..inspection.figures import draw_inspection
from ..inspection.inspect import inspect_pair
from ..inspection.page import RunFacts, write_page
from ..inspection.sheets import sheets
from ..run.execute import make_clone, prepare_data
from ..training.checkpoint import load_clone
from .saved import read_saved
from .tables import console, print_sheet, quiet_bars


def run(arguments: Namespace) -> None:
    """`lrc inspect RUN [--tokens N] [--start] [--no-html]`"""
    quiet_bars()
    folder = Path(arguments.run)
    if arguments.tokens < 1:
        raise InputError(f"--tokens: got {arguments.tokens}, expected a positive number of validation tokens")
    saved = read_saved(folder, "method.compile=false")
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
    figures = draw_inspection(inspection, saved.metrics, folder / "inspect")
    if not arguments.no_html:
        today, ours = date.today().isoformat(), version("lowrank-clone")
        facts = RunFacts(str(folder), recipe.teacher.model, saved.checkpoint.name, saved.tokens, today, ours)
        write_page(inspection, facts, figures, folder / "inspect" / "report.html")
    console.print(f"Figures{'' if arguments.no_html else ' and report.html'} are in {folder / 'inspect'}.")
