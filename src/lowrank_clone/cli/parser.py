"""Argument parsing. Options and overrides may stand in any order, and every mistake is one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from ..errors import InputError, one_line
from .launch import ENGINES

DESCRIPTION = "Low-Rank Clone distillation: any decoder language model becomes the teacher of a narrower student."
EXAMPLES = """\
a first run:
  lrc init HuggingFaceTB/SmolLM2-135M-Instruct corpus/   write recipe.yaml for this teacher and text
  lrc train recipe.yaml --dry-run                        check everything, say sizes, epochs and time
  lrc train recipe.yaml                                  train; the student is in the run's folder
  lrc train recipe.yaml training.learning_rate=1e-4      any field of the recipe can be overridden

A mistake is one line and exit code 2, before any long work. Documentation: docs/ and README.md.
"""
OVERRIDE = "section.key=value"
# Sections of a recipe in which a resumed run may be allowed to differ (`--allow`).
SECTIONS = ("method", "data", "training")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `InputError`s and whose options can't be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{message}; `{self.prog} --help` says what there is")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; `command` is its name, and that of the module of this package that runs it.

    Raises:
        InputError: An unknown command or option, or a missing argument.
        SystemExit: After --help and --version, and with code 2 after the help that `lrc` alone prints.
    """
    parser, commands = _parsers()
    if not argv:
        parser.print_help()
        raise SystemExit(2)
    name, *rest = argv
    if name not in commands:
        if not name.startswith("-"):
            near = difflib.get_close_matches(name[:50], commands, n=1)
            hint = f"did you mean `lrc {near[0]}`?" if near else f"there are {', '.join(commands)}"
            raise InputError(f"no command `{one_line(name, 50)}`; {hint}")
        parser.parse_args(argv)
    if name == "data" and rest[:1] == ["stats"]:
        name, rest = "data stats", rest[1:]
    command = commands[name]
    rest = _with_its_value(rest)
    _refuse_unknown_options(command, rest)
    # A subparser of argparse's own would take overrides before the options only.
    return command.parse_intermixed_args(rest)


def _with_its_value(given: Sequence[str]) -> list[str]:
    """`--resume auto` as one word, and `--resume` alone as `--resume=last`, since an override may follow it."""
    found: list[str] = []
    for word in given:
        if word == "auto" and found and found[-1] == "--resume=last":
            found[-1] = "--resume=auto"
        else:
            found.append("--resume=last" if word == "--resume" else word)
    return found


def _refuse_unknown_options(command: argparse.ArgumentParser, given: Sequence[str]) -> None:
    """Argparse would tell an unknown option after everything else that is wrong, and without the nearest one."""
    known = [option for action in command._actions for option in action.option_strings]
    for word in given:
        option = word.partition("=")[0]
        if not word.startswith("--") or word == "--" or option in known:
            continue
        if "." in option:
            hint = f"fields of the recipe are set as `{option.lstrip('-')}=...`, without dashes"
        else:
            near = difflib.get_close_matches(option[:50], known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"`{command.prog}` takes {', '.join(known)}"
        raise InputError(f"unknown option `{one_line(option, 100)}`; {hint}")


def _parsers() -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    parser = Parser(
        prog="lrc", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lowrank-clone {version('lowrank-clone')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
        text = f"{summary[0].upper()}{summary[1:]}. {more}".strip()
        added = commands.add_parser(name, help=summary, description=text)
        added.set_defaults(command=name.replace(" ", "_"))
        return added

    init = command("init", "write a commented recipe for a teacher and a text", more="Nothing is overwritten.")
    init.add_argument("teacher", help="a Hub id, a folder with a model, or a .gguf file")
    init.add_argument("text", nargs="+", help="files, folders or globs of .txt, .jsonl, .parquet, or a Hub dataset")
    init.add_argument("-o", "--output", default="recipe.yaml", help="file to write (default recipe.yaml)")

    train = command("train", "train a student as a recipe says")
    _recipe(train)
    _train(train)

    plan = command("plan", "print what a recipe would train, from the teacher's config alone")
    _recipe(plan)

    data = command(
        "data",
        "tokenise a recipe's text once, for any number of runs",
        more="What was made before is used again; after a kill, the same command goes on.",
    )
    _data(data)
    _stats(command("data stats", "show what a recipe's text is like, as a table and a figure"))

    _inspect(command("inspect", "measure what a run's student kept of its teacher, with figures"))
    _report(command("report", "write one HTML page of a run, or of several side by side, that needs nothing beside it"))

    export = command("export", "write the student of a run's last checkpoint")
    export.add_argument("run", help="the run's folder")
    export.add_argument("output", help="folder to write the student to")

    recipes = command("recipes", "list the recipes that come with lrc, or print one")
    recipes.add_argument("name", nargs="?", help="print this one, as a start for one's own")

    families = command("families", "list the model types that can be cloned, and why others can't")
    families.add_argument("model_type", nargs="?", help="only this type, for instance qwen3")
    families.add_argument("--markdown", action="store_true", help="print docs/families.md")

    demo = command("demo", "distil SmolLM2-135M-Instruct on the standard library's documentation")
    demo.add_argument(
        "overrides", nargs="*", default=[], metavar=OVERRIDE, help="override a field of the demo's recipe"
    )
    return parser, commands.choices


def _data(data: argparse.ArgumentParser) -> None:
    _recipe(data)
    data.add_argument("--workers", type=_positive, metavar="N", help="processes (default data.num_proc, or all cores)")
    data.add_argument("--verify", action="store_true", help="make nothing; hold the shards against their checksums")
    data.add_argument("--share", metavar="I/N", help="make the share of machine I of N, which see one data.shards")
    data.add_argument("--executor", choices=("local", "slurm"), default="local", help="who runs it (default local)")
    data.add_argument("--tasks", type=_positive, metavar="N", help="most tasks of Slurm's job array (default 100)")
    data.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch, as partition=cpu; partition and time are needed",
    )


def _stats(stats: argparse.ArgumentParser) -> None:
    _recipe(stats)
    stats.add_argument(
        "--tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of each source to measure the teacher's loss on (default 4096; 0 reads no weights)",
    )
    stats.add_argument(
        "--figure", default="data-stats.png", metavar="FILE", help="file for the figure (data-stats.png)"
    )
    stats.add_argument("--json", action="store_true", help="print JSON in place of the table")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text[:9]) > 0 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with lrc (`lrc recipes`)")
    parser.add_argument("overrides", nargs="*", default=[], metavar=OVERRIDE, help="override any field of the recipe")


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, finished or not")
    report.add_argument("-o", "--output", help="file to write (default RUN/report.html; report.html for several runs)")
    report.add_argument("--figures", metavar="FOLDER", help="write every figure as SVG and PNG into this folder, too")
    report.add_argument("--watch", action="store_true", help="write it again whenever the runs logged, until they end")
    report.add_argument(
        "--every", type=int, default=30, metavar="SECONDS", help="how often to look with --watch (default 30)"
    )


def _inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("run", help="the run's folder; figures and report.html go to its inspect/")
    inspect.add_argument("--tokens", type=int, default=4096, help="validation tokens to measure on (default 4096)")
    inspect.add_argument("--start", action="store_true", help="measure the student before training, too")
    inspect.add_argument("--no-html", action="store_true", help="write no report.html")


def _train(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, say sizes, epochs and time, run nothing"
    )
    train.add_argument("--launch", choices=ENGINES, help="train in several processes of this machine: DDP or FSDP2")
    train.add_argument("--processes", type=int, help="how many for --launch (default: one for each accelerator)")
    folder = train.add_mutually_exclusive_group()
    folder.add_argument(
        *("--resume",),
        choices=("last", "auto"),
        metavar="[auto]",
        help="go on from the last complete checkpoint; auto: where there is none, begin",
    )
    folder.add_argument("--overwrite", action="store_true", help="replace the run that is in the output folder")
    train.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=SECTIONS,
        metavar="SECTION",
        help="let a resumed run have another method, data or training section than it was begun with; may be repeated",
    )
