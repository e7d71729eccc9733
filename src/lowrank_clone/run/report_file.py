"""Where a report may be written: what is there and is no report of ours is left alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError
from ..report.html import GENERATOR
from .disk import disk_errors, shown_path
from .manifest import holds_run, record, set_aside

_FIGURE = re.compile(r"[a-z][a-z_0-9]*\.(svg|png)")


def check_page(output: Path) -> None:
    """Refuse a place for the page that is a folder, lies in none, or holds a file that is no report.

    Raises:
        InputError: It says which.
    """
    with disk_errors(f"-o: `{shown_path(output)}` can't be used", "give another file"):
        if output.is_dir():
            raise InputError(f"-o: `{output}` is a folder; expected a file such as {output / 'report.html'}")
        if output.is_symlink():
            raise InputError(f"-o: `{output}` is a link; give another file")
        if not output.parent.is_dir():
            raise InputError(f"-o: `{output.parent}` is no folder; make it first, or give another file")
        if output.exists() and not is_report(output):
            raise InputError(
                f"-o: `{output}` is no report of this library's and would be written over; give another file"
            )


def check_figures(folder: Path) -> None:
    """Refuse a folder for figures that holds anything else.

    Raises:
        InputError: It says what.
    """
    with disk_errors(f"--figures: `{shown_path(folder)}` can't be used", "give another folder"):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--figures: `{folder}` is a file; expected a folder")
        others = (
            [path for path in sorted(folder.iterdir()) if not _FIGURE.fullmatch(path.name)] if folder.exists() else []
        )
        if others:
            raise InputError(
                f"--figures: `{others[0]}` is no figure of a report; give a new folder, or an earlier one of figures"
            )


def is_report(file: Path) -> bool:
    """Whether a file is a page that `lrc report` wrote."""
    with file.open("rb") as opened:
        return GENERATOR in opened.read(1024)


def put_page(output: Path, text: str) -> None:
    """Write the page whole or not at all; one that somebody changed in a run's folder is kept as `NAME.changed`."""
    folder = output.parent
    part = output.with_name(f".{output.name}.part")
    part.write_text(text, encoding="utf-8")
    ours = holds_run(folder)
    if ours:
        set_aside(folder, output)
    os.replace(part, output)
    if ours:
        record(folder, [output])
