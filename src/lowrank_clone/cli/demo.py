"""`lrc demo`."""

from __future__ import annotations

from argparse import Namespace

from ..run.demo import run_demo
from .tables import console, quiet_bars


def run(arguments: Namespace) -> None:
    """`lrc demo [section.key=value ...]`"""
    quiet_bars()
    run_demo(arguments.overrides, console)
