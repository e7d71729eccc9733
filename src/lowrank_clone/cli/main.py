"""The command line: argument parsing only. Every mistake of the user's is one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lrc`; the exit code is 2 for the user's mistakes, 1 for training that had to stop."""
    arguments = _parser().parse_args(argv)
    # Imported here: `lrc --help` should not wait for torch.
    from ..errors import NonFiniteLoss
    from . import commands

    if not sys.stderr.isatty():
        commands.quiet_bars()

    try:
        commands.COMMANDS[arguments.command](arguments)
    except InputError as error:
        print(f"lrc: error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"lrc: training stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrc", description="Low-Rank Clone distillation of language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a student as a recipe says")
    _recipe(train)
    train.add_argument("--dry-run", action="store_true", help="check everything, print the plan and sizes, run nothing")
    folder = train.add_mutually_exclusive_group()
    folder.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    folder.add_argument("--overwrite", action="store_true", help="replace the run that is in the output folder")

    plan = commands.add_parser("plan", help="print what a recipe would train, from the teacher's config alone")
    _recipe(plan)

    families = commands.add_parser("families", help="list the model types that can be cloned, and why others can't")
    families.add_argument("model_type", nargs="?", help="only this type, for instance qwen3")
    families.add_argument("--markdown", action="store_true", help="print docs/families.md")

    export = commands.add_parser("export", help="write the student of a run's last checkpoint")
    export.add_argument("run", help="the run's folder")
    export.add_argument("output", help="folder to write the student to")

    inspect = commands.add_parser("inspect", help="measure what a run's student kept of its teacher, with figures")
    inspect.add_argument("run", help="the run's folder; figures and report.html go to its inspect/")
    inspect.add_argument("--tokens", type=int, default=4096, help="validation tokens to measure on (default 4096)")
    inspect.add_argument("--start", action="store_true", help="measure the student before training, too")
    inspect.add_argument("--no-html", action="store_true", help="write no report.html")

    demo = commands.add_parser("demo", help="distil SmolLM2-135M-Instruct on the standard library's documentation")
    demo.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a field of the demo's recipe")
    return parser


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe such as lrc-1.7b")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override any field of the recipe")
