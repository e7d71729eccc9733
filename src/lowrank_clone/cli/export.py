"""`lrc export`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..run.export import export_run
from .tables import console, quiet_bars


def run(arguments: Namespace) -> None:
    """`lrc export RUN OUTPUT`"""
    quiet_bars()
    output = Path(arguments.output).expanduser()
    step = export_run(Path(arguments.run).expanduser(), output)
    console.print(f"The student of step {step} is in {output}.")
