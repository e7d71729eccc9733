"""Which files in a run's folder this library wrote, so that replacing a run touches these and nothing else.

A run lists what it wrote in `manifest.json`: each file's path, its size, and its digest if it is small. A file counts
as ours while it is what was written; one that somebody changed since is theirs. What no manifest lists is known by
exact names in folders that hold a clone's files: what a cut-off save left, and runs from before there were manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..training.checksums import CHECKPOINT_FILES
from ..training.durable import read_object, sync, write_whole

MANIFEST_FILE = "manifest.json"
RUN_FILES = (
    *("recipe.yaml", "versions.json", "results.json", "metrics.jsonl", "speed.jsonl"),
    *("curves.png", "samples.json", "report.html", MANIFEST_FILE),
)
# These are written anew while a run goes, so they are ours by name in a folder that holds a run.
_REWRITTEN = ("metrics.jsonl", "speed.jsonl", MANIFEST_FILE)
_CHECKPOINT = re.compile(r"_?checkpoint-\d+")
_STUDENT_FILES = re.compile(
    r"README\.md|config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|chat_template\.jinja|tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt"
)
INSPECT_FILES = re.compile(r"report\.html|(curves|relative_error|effective_rank|factors|masking)\.png")
_WRITER = "lowrank-clone"
_DIGESTED = 2**20  # bytes; larger files are told by their size alone


def holds_run(folder: Path) -> bool:
    """Whether a run of this library was begun in `folder`."""
    return _entries(folder) is not None or _WRITER in read_object(folder / "versions.json")


def record(folder: Path, paths: Iterable[Path], coming: Mapping[Path, Path] | None = None) -> None:
    """Add files, or all files below directories, that were just written; what is gone leaves the list.

    Args:
        coming: Files that are about to be moved into the folder: what each will be, and where it is now.
    """
    entries = _entries(folder) or {}
    for path in paths:
        for file in _files(path) if path.is_dir() else [path]:
            entries[file.relative_to(folder).as_posix()] = _state(file)
    kept = {name: state for name, state in entries.items() if (folder / name).is_file()}
    kept |= {target.relative_to(folder).as_posix(): _state(file) for target, file in (coming or {}).items()}
    kept |= {name: {} for name in _REWRITTEN if (folder / name).is_file() or name == MANIFEST_FILE}
    write_whole(folder / MANIFEST_FILE, json.dumps({"writer": _WRITER, "files": kept}, indent=1) + "\n")


def our_files(folder: Path) -> list[Path]:
    """Files below `folder` that a run wrote there and nobody changed since; none where no run was begun."""
    if not holds_run(folder):
        return []
    listed = {folder / name: state for name, state in (_entries(folder) or {}).items()}
    ours = {file for file, state in listed.items() if _is_plain(file, folder) and _unchanged(file, state)}
    ours |= {file for file in _known_by_name(folder, legacy=_entries(folder) is None) if file not in listed}
    return sorted(ours)


def changed_files(folder: Path) -> list[Path]:
    """Files that a run wrote and that are no longer what was written."""
    listed = (_entries(folder) or {}).items()
    files = [(folder / name, state) for name, state in listed]
    return sorted(file for file, state in files if _is_plain(file, folder) and not _unchanged(file, state))


def remove(files: Iterable[Path], folder: Path) -> None:
    """Delete files, and the directories below `folder` that are empty then."""
    parents = set()
    for file in files:
        file.unlink(missing_ok=True)
        parents |= {parent for parent in file.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def set_aside(folder: Path, place: Path) -> None:
    """Keep files of a run's that somebody changed as `NAME.changed`, since their names are about to be written anew.

    Args:
        place: The file, or the folder with the files, that is about to be written.
    """
    for changed in changed_files(folder):
        if place == changed or place in changed.parents:
            os.replace(changed, changed.with_name(f"{changed.name}.changed"))


def move_in(part: Path, place: Path, last: str) -> None:
    """Move what lies in the folder `part` into a subfolder `place` of a run, where it takes the place of the run's own.

    The run's manifest lists the files before the first one is moved, so that whatever cuts this off leaves none that
    would later be taken for the user's. A file that somebody changed since a run wrote it is kept as `NAME.changed`.

    Args:
        last: The name of the file that is moved last: where it is, all are.
    """
    folder = place.parent
    files = sorted((file for file in part.rglob("*") if file.is_file()), key=lambda file: (file.name == last, file))
    coming = {place / file.relative_to(part): file for file in files}
    for file in files:
        sync(file)
    set_aside(folder, place)
    remove([file for file in our_files(folder) if file in coming], folder)
    record(folder, [], coming)
    for target, file in coming.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def refuse_inside(folder: Path, below: Path, names: re.Pattern[str]) -> None:
    """Refuse files of the user's in a run's subfolder that have names which are about to be written.

    Raises:
        InputError: It names the first one.
    """
    if below.is_symlink() or (below.exists() and not below.is_dir()):
        raise InputError(f"`{below}` is no folder of this run's; move it elsewhere")
    ours = {*our_files(folder), *changed_files(folder)}
    found = sorted(below.iterdir()) if below.is_dir() else []
    strangers = [path for path in found if names.fullmatch(path.name) and path not in ours]
    if strangers:
        raise InputError(
            f"`{strangers[0]}` was not written by this library and would be written over; move it elsewhere"
        )


def refuse_strangers(folder: Path, names: Iterable[str], *, replaced: bool) -> None:
    """Refuse a folder in which something of the user's has a name that a run would write.

    Args:
        replaced: Whether the run that is there goes; if not, files of its that were changed will be set aside.

    Raises:
        InputError: It is a link, it was changed since a run wrote it, or no run wrote it.
    """
    away = "which a run would write over; move it elsewhere, or give another training.output_dir"
    changed = changed_files(folder)
    ours = [*our_files(folder), *changed]
    for path in sorted(folder.iterdir()):
        if path.name not in names and not (replaced and _CHECKPOINT.fullmatch(path.name)):
            continue
        if path.is_symlink():
            raise InputError(f"training.output_dir: `{path}` is a link, {away}")
        if path.is_dir() and not any(path.iterdir()):
            continue  # nothing in it is written over
        if not any(path == file or path in file.parents for file in ours):
            raise InputError(f"training.output_dir: `{path}` was not written by this library, {away}")
    if changed and replaced:
        raise InputError(f"training.output_dir: `{changed[0]}` was changed since its run wrote it, {away}")


def _known_by_name(folder: Path, legacy: bool) -> Iterator[Path]:
    """Files that no manifest lists: of a save that was cut off, and all of a run from before there were manifests."""
    yield from (folder / name for name in RUN_FILES if _is_plain(folder / name, folder))
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            continue
        names = None
        if _CHECKPOINT.fullmatch(path.name):
            names = CHECKPOINT_FILES if (path / "factors.safetensors").is_file() else None
        elif legacy and path.name == "student":
            card = path / "README.md"
            ours = _is_plain(card, folder) and b"low-rank-clone" in card.read_bytes()[:4096]
            names = _STUDENT_FILES if ours else None
        elif legacy:
            names = {"inspect": INSPECT_FILES, "scratch": re.compile(r"metrics\.jsonl")}.get(path.name)
        if names is not None:
            yield from (file for file in path.iterdir() if names.fullmatch(file.name) and _is_plain(file, folder))


def _is_plain(file: Path, folder: Path) -> bool:
    """A file that is no link, reached from `folder` through no link."""
    between = [parent for parent in file.parents if folder in parent.parents]
    return file.is_file() and not any(path.is_symlink() for path in (file, *between))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if _is_plain(path, folder)]


def _state(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    return {"size": size} | ({"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if size <= _DIGESTED else {})


def _unchanged(file: Path, state: dict[str, Any]) -> bool:
    now = _state(file)
    return all(now.get(key) == value for key, value in state.items())


def _entries(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The manifest's files by name, those that lie inside the folder; None if there is no manifest."""
    tree = read_object(folder / MANIFEST_FILE)
    files = tree.get("files")
    if tree.get("writer") != _WRITER or not isinstance(files, dict):
        return None
    told = {name: state for name, state in files.items() if isinstance(state, dict) and _inside(name)}
    return {name: state for name, state in told.items() if name in _REWRITTEN or "size" in state}


def _inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
