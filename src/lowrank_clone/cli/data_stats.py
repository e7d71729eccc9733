"""`lrc data stats`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..errors import InputError
from ..recipe.load import load_recipe
from ..run.demo_teacher import with_installed_teacher

FIGURE = "data-stats.png"


def run(arguments: Namespace) -> None:
    """`lrc data stats RECIPE [section.key=value ...] [--tokens N] [--figure FILE] [--json]`"""
    if not 0 <= arguments.tokens <= 10**9:
        raise InputError(f"--tokens: got {arguments.tokens}, expected 0 (no loss of the teacher) to 1,000,000,000")
    figure = _figure(Path(arguments.figure).expanduser())
    recipe = with_installed_teacher(load_recipe(arguments.recipe, arguments.overrides))

    # Imported here: what was checked until now should not wait for PyTorch.
    from ..report.lengths import draw_lengths
    from ..run.data_stats import as_json, measure_stats, names_of, rows_of
    from ..run.disk import disk_errors
    from .tables import console, new_table, quiet_bars

    quiet_bars()
    said = (lambda line: None) if arguments.json else console.print
    blocks, stats = measure_stats(recipe, arguments.tokens, said)
    names = names_of(stats)
    if arguments.json:
        print(as_json(blocks, stats))
    else:
        columns, rows = rows_of(stats)
        table = new_table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for line in _notes(arguments.tokens, recipe.data.sequence_length, recipe.data.packing):
            console.print(line)
        for line in blocks.report.lines():
            console.print(line)
    with disk_errors(f"could not write `{figure}`", "give another file with --figure"):
        counts = {name: one.lengths.counts for name, (one, _) in zip(names, stats, strict=True)}
        shares = {name: (one.train.share, one.asked) for name, (one, _) in zip(names, stats, strict=True)}
        draw_lengths(counts, shares, figure)
    said(f"The figure is in {figure}.")


def _notes(tokens: int, length: int, packing: str) -> list[str]:
    """What the columns are, with their units."""
    notes = [
        "documents, tokens: of the source, both sides; share: of the tokens of one pass, asked: by weights or budgets;",
        f"passes: how often one pass of the mix reads the source; full: places of its blocks of {length:,} with its "
        f"tokens ({packing}); lengths in tokens.",
    ]
    if tokens:
        notes.append(f"teacher's loss: nats/token on the first blocks of the mix, about {tokens:,} tokens a source.")
    return notes


def _figure(path: Path) -> Path:
    """The file of the figure, if it may be written."""
    if path.suffix != ".png":
        raise InputError(f"--figure: got `{path}`, expected a .png file")
    if not path.parent.is_dir():
        raise InputError(f"--figure: `{path.parent}` is no folder; make it first, or give another file")
    if path.is_symlink() or (path.exists() and not (path.is_file() and _is_ours(path))):
        raise InputError(
            f"--figure: `{path}` is no figure of this command's and would be written over; give another file"
        )
    return path


def _is_ours(path: Path) -> bool:
    """Whether the figure's own note is in its first bytes."""
    with path.open("rb") as opened:
        return b"lowrank-clone" in opened.read(4096)
