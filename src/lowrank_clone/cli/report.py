"""`lrc report`."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError
from ..report.charts import Chart, charts
from ..report.html import draw_figures, page
from ..report.view import MOST_RUNS, RunView
from ..run.disk import disk_errors, shown_path
from ..run.report import REPORT_FILE, RunReader, named
from ..run.report_file import check_figures, check_page, put_page
from .tables import console

_LOGS = logging.getLogger("lowrank_clone")


def run(arguments: Namespace) -> None:
    """`lrc report RUN [RUN ...] [-o FILE] [--figures FOLDER] [--watch [--every SECONDS]]`"""
    folders = [Path(given).expanduser() for given in arguments.runs]
    if twice := [folder for i, folder in enumerate(folders) if folder.resolve() in [f.resolve() for f in folders[:i]]]:
        raise InputError(f"`{twice[0]}` is given twice; expected each run once")
    if len(folders) > MOST_RUNS:
        raise InputError(f"got {len(folders)} runs, expected at most {MOST_RUNS} side by side; give fewer")
    if not 1 <= arguments.every <= 86_400:
        raise InputError(f"--every: got {arguments.every}, expected 1 to 86,400 seconds")
    alone = folders[0] / REPORT_FILE if len(folders) == 1 else Path(REPORT_FILE)
    output = alone if arguments.output is None else Path(arguments.output).expanduser()
    figures = None if arguments.figures is None else Path(arguments.figures).expanduser()
    readers = [RunReader(folder, name, tokenizer=len(folders) > 1) for folder, name in named(folders).items()]
    check_page(output)
    if figures is not None:
        check_figures(figures)
    live = arguments.every if arguments.watch else 0
    views = [reader.read(begun=not arguments.watch) for reader in readers]
    _write(views, output, figures, live)
    console.print(f"The report is in {output}{'' if figures is None else f', its figures in {figures}'}.")
    if arguments.watch and _going_on(views):
        console.print(f"It is written again every {arguments.every} s while training logs; Ctrl-C ends this.")
        _watch(readers, output, figures, arguments.every)
        console.print(f"Finished. The report is in {output}.")


def _watch(readers: Sequence[RunReader], output: Path, figures: Path | None, every: int) -> None:
    """Write the report again whenever a run has changed, until all are finished."""
    level, seen = _LOGS.level, _stamps(readers)
    _LOGS.setLevel(logging.ERROR)  # a line that is just being written is no damage to speak of every time
    try:
        while True:
            time.sleep(every)
            now = _stamps(readers)
            if now == seen:
                continue
            seen, views = now, [reader.read(begun=False) for reader in readers]
            _write(views, output, figures, every)
            if not _going_on(views):
                return
    finally:
        _LOGS.setLevel(level)


def _write(views: Sequence[RunView], output: Path, figures: Path | None, live: int) -> None:
    with disk_errors(f"could not write `{shown_path(output)}`", "give another file with -o"):
        put_page(output, page(views, live if _going_on(views) else 0))
    if figures is not None:
        with disk_errors(f"could not write into `{shown_path(figures)}`", "give another folder"):
            figures.mkdir(parents=True, exist_ok=True)
            drawn: list[Chart] = charts(views)
            draw_figures(drawn, figures)


def _going_on(views: Iterable[RunView]) -> bool:
    return not all(view.finished for view in views)


def _stamps(readers: Iterable[RunReader]) -> list[int]:
    """When the files of the runs were last written that a report reads."""
    names = ("metrics.jsonl", "results.json", "samples.json", "student/config.json")
    files = [reader.folder / name for reader in readers for name in names]
    return [file.stat().st_mtime_ns if file.is_file() else 0 for file in files]
