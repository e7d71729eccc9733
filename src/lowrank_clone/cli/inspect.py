"""`lrc inspect`."""

from __future__ import annotations

import shutil
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
from ..run.build_clone import make_clone
from ..run.disk import disk_errors
from ..run.execute import prepare_data
from ..run.manifest import INSPECT_FILES, move_in, refuse_inside
from ..run.saved import clone_of, job_of, open_run
from ..training.checkpoint import load_clone
from .tables import console, print_sheet, quiet_bars


def run(arguments: Namespace) -> None:
    """`lrc inspect RUN [--tokens N] [--start] [--no-html]`"""
    quiet_bars()
    folder = Path(arguments.run).expanduser()
    if arguments.tokens < 1:
        raise InputError(f"--tokens: got {arguments.tokens}, expected a positive number of validation tokens")
    saved = open_run(folder)
    output = folder / "inspect"
    refuse_inside(folder, output, INSPECT_FILES)
    job = job_of(saved)
    prepared = prepare_data(job)
    blocks = prepared.validation
    length = saved.recipe.data.sequence_length
    wanted = -(-arguments.tokens // length)
    if wanted > len(blocks):
        console.print(
            f"All {len(blocks) * length:,} validation tokens are used, fewer than --tokens {arguments.tokens:,}."
        )
    blocks = blocks.select(range(min(len(blocks), wanted)))
    clone = make_clone(job, prepared) if arguments.start else clone_of(saved)
    pair = (clone.teacher, clone.student, clone.plan, clone.factors, blocks)
    start = relative_errors(*pair, progress=True) if arguments.start else ()
    load_clone(clone, saved.checkpoint)
    inspection = replace(inspect_pair(*pair, progress=True), start_errors=start)
    for sheet in sheets(inspection):
        print_sheet(sheet)
    with disk_errors(f"could not write into `{output}`"):
        part = output.with_name(f".{output.name}.part")  # written whole first, so that a Ctrl-C leaves no half of it
        shutil.rmtree(part, ignore_errors=True)
        try:
            figures = draw_inspection(inspection, saved.metrics, part)
            if not arguments.no_html:
                today, ours = date.today().isoformat(), version("lowrank-clone")
                teacher = saved.recipe.teacher.model
                facts = RunFacts(str(folder), teacher, saved.checkpoint.name, saved.tokens, today, ours)
                write_page(inspection, facts, figures, part / "report.html")
            move_in(part, output, last="report.html")
        finally:
            shutil.rmtree(part, ignore_errors=True)
    console.print(f"Figures{'' if arguments.no_html else ' and report.html'} are in {output}.")
