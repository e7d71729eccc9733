"""`lrc init`."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from ..data.check import check_sources
from ..data.config import DataConfig, SourceConfig
from ..errors import InputError, one_line


def run(arguments: Namespace) -> None:
    """`lrc init TEACHER TEXT ... [-o FILE]`"""
    output = Path(arguments.output).expanduser()
    if os.path.lexists(output):
        raise InputError(f"-o: `{output}` is there already, and nothing is overwritten; give another name with -o")
    if not output.parent.is_dir():
        raise InputError(f"-o: there is no folder `{output.parent}`; make it first, or give another name with -o")
    check_sources(DataConfig(sources=[SourceConfig(path=path) for path in arguments.text]))

    # Imported here: what was checked until now should not wait for PyTorch.
    from ..run.first_recipe import first_recipe
    from .tables import console, quiet_bars

    quiet_bars()
    text, lines = first_recipe(arguments.teacher, arguments.text)
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(
            f"-o: `{output}` can't be written ({one_line(error.strerror, 200)}); give another name"
        ) from error
    for line in lines:
        console.print(line)
    console.print(f"Wrote {output}. Next: lrc train {output} --dry-run")
