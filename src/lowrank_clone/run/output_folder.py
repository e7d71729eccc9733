"""Where a run may go: what is checked of its output folder. Imports no PyTorch, so that mistakes are told at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..recipe.schema import Recipe
from ..training.last_checkpoint import complete_checkpoints, last_checkpoint
from .disk import disk_errors, shown_path
from .manifest import MANIFEST_FILE, RUN_FILES, holds_run, refuse_strangers

NEW = ".new-run"  # where a run writes that is to replace the one in its folder, until it has trained
TAKING = ".taking-place"  # that run, while it is moved to its place
LOCK = ".lock"  # see lock.py
PART = ".student.part"  # where the student is written before it is moved
Resume = bool | Literal["auto"]  # go on, begin, or whichever can be done
LONGEST_PATH = 3900  # bytes of a folder's path, so that what is written below it stays under Linux' 4,096


def output_folder(recipe: Recipe) -> Path:
    """Where the run goes."""
    return Path(recipe.training.arguments.get("output_dir") or "runs/train").expanduser()


def check_folder(folder: Path, *, resume: Resume, overwrite: bool, also: Iterable[str] = ()) -> Path | None:
    """The checkpoint from which a run in `folder` goes on, or None for a run that begins; writes nothing.

    Raises:
        InputError: The folder can't be written to, is no place for a run, holds something that a run would write over,
            holds a run that neither flag speaks of, or `resume` finds no complete checkpoint.
    """
    with disk_errors(f"training.output_dir: `{shown_path(folder)}` can't be used", "give another folder"):
        _check_place(folder)
        if is_empty(folder):
            if resume is True:
                raise InputError(f"--resume: no complete checkpoint in `{folder}`, nor anything else; leave it out")
            return None
        checkpoint = resumable(folder, last_begun=resume == "auto")
        begun = any(holds_run(place) for place in (folder, folder / NEW, folder / TAKING))
        if resume == "auto" and begun and not _has_saved(folder):
            resume, overwrite = False, True  # it was killed before it had saved anything, so it begins again
        if resume and checkpoint is not None:
            if not (folder / TAKING).is_dir():  # else its files are known when all of them have been moved
                refuse_strangers(checkpoint.parent, [*RUN_FILES, "student", *also], replaced=False)
            return checkpoint
        if resume or not overwrite:
            raise InputError(_advice(folder, checkpoint, begun, bool(resume)))
        if not begun and checkpoint is None:
            raise InputError(
                f"--overwrite: `{folder}` is not empty and holds no run that could be replaced; "
                "give another training.output_dir"
            )
        refuse_strangers(folder, [*RUN_FILES, "student", *also], replaced=True)
        return None


def _has_saved(folder: Path) -> bool:
    """Whether the run that was last begun in a folder has complete checkpoints, damaged or not."""
    return any(complete_checkpoints(place) for place in _places(folder, last_begun=True))


def resumable(folder: Path, last_begun: bool = False) -> Path | None:
    """The checkpoint that `--resume` takes: of a run that was about to replace the one in `folder`, or of that one.

    Args:
        last_begun: Pass over the older run where a newer one has saved nothing yet.
    """
    found = (last_checkpoint(place) for place in _places(folder, last_begun))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def file_beside(checkpoint: Path, name: str) -> Path:
    """A small file of the run that a checkpoint belongs to, also while that run is moved to its place."""
    run = checkpoint.parent
    folder = run.parent if run.name == TAKING else run
    return next((file for file in (run / name, folder / name, folder / TAKING / name) if file.is_file()), run / name)


def _places(folder: Path, last_begun: bool) -> list[Path]:
    """Where checkpoints are looked for, in this order."""
    new = [folder / NEW] if (folder / NEW).is_dir() else []
    return new if new and last_begun else [*new, folder / TAKING, folder]


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder, or no folder there; the lock of a process that was killed is nothing."""
    return not folder.exists() or all(path.name == LOCK for path in folder.iterdir())


def state_of_folder(folder: Path) -> tuple[bytes, ...]:
    """What changes whenever a run goes on in a folder."""
    manifests = (place / MANIFEST_FILE for place in (folder, folder / NEW, folder / TAKING))
    return tuple(file.read_bytes() if file.is_file() else b"" for file in manifests)


def check_apart(folder: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse inputs inside the output folder, which a later run could replace, and an output folder inside a text's.

    Args:
        inputs: Files and folders that the run reads, by the key that names each.

    Raises:
        InputError: It names the key.
    """
    output = folder.resolve()
    for key, path in inputs.items():
        real = path.expanduser().resolve()
        if real == output or output in real.parents:
            raise InputError(
                f"{key}: `{path}` lies inside training.output_dir `{folder}`, where runs are replaced; "
                "give another training.output_dir"
            )
        if key.startswith("data.") and real in output.parents and real.is_dir():  # files that are there are read
            raise InputError(
                f"training.output_dir: `{folder}` lies inside {key} `{path}`, which would then hold the run's own "
                "files; give another training.output_dir"
            )


def _check_place(folder: Path) -> None:
    if len(os.fsencode(os.path.abspath(folder))) > LONGEST_PATH:
        raise InputError(f"training.output_dir: `{shown_path(folder)}` is too long; give a shorter path")
    if "\0" in str(folder):
        raise InputError("training.output_dir: holds a zero byte; give another path")
    real, here, home = folder.resolve(), Path.cwd(), Path.home()
    what = {
        "the root of the file system": real == Path(real.anchor),
        "the current folder, or holds it": real == here or real in here.parents,
        "the home folder, or holds it": real == home or real in home.parents,
        "a git repository": (real / ".git").exists(),
    }
    for name, is_it in what.items():
        if is_it:
            raise InputError(f"training.output_dir: `{folder}` is {name}; expected a folder for this run alone")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"training.output_dir: `{folder}` is a file; expected a folder")
    for hidden in (folder / NEW, folder / TAKING):
        if hidden.is_symlink():
            raise InputError(f"training.output_dir: `{hidden}` is a link; remove it")
    nearest = next(path for path in (real, *real.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"training.output_dir: `{folder}` lies below the file `{nearest}`; expected folders")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"training.output_dir: `{nearest}` can't be written to; expected a folder that can")


def _advice(folder: Path, checkpoint: Path | None, begun: bool, resume: bool) -> str:
    """What to do about a folder that is not empty, never the flag that was given."""
    if resume:
        if begun:
            return (
                f"--resume: no complete checkpoint in `{folder}`, whose run ended before it saved one; give "
                "--overwrite in place of --resume to begin anew"
            )
        return f"--resume: no complete checkpoint in `{folder}`, which holds no run; give another training.output_dir"
    if checkpoint is not None:
        return (
            f"training.output_dir: `{folder}` is not empty; give --resume to go on, --overwrite to replace that run, "
            "or another training.output_dir"
        )
    if begun:
        return (
            f"training.output_dir: `{folder}` is not empty: its run ended before it saved a checkpoint; give "
            "--overwrite to begin anew, or another training.output_dir"
        )
    return f"training.output_dir: `{folder}` is not empty and holds no run; give another training.output_dir"
