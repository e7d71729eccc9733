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
from ..run.build import make_clone
from ..run.disk import disk_errors
from ..run.execute import prepare_data
from ..run.manifest import INSPECT_FILES, record, refuse_inside, set_aside
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
        set_aside(folder, output)
        figures = draw_inspection(inspection, saved.metrics, output)
        if not arguments.no_html:
            today, ours = date.today().isoformat(), version("lowrank-clone")
            facts = RunFacts(str(folder), saved.recipe.teacher.model, saved.checkpoint.name, saved.tokens, today, ours)
            write_page(inspection, facts, figures, output / "report.html")
        record(folder, [path for path in output.iterdir() if INSPECT_FILES.fullmatch(path.name)])
    console.print(f"Figures{'' if arguments.no_html else ' and report.html'} are in {output}.")
