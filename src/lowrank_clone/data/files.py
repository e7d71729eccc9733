"""Finding the files of a source. Imports nothing heavy, so that a wrong path is told at once."""

import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError

EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


@dataclass(frozen=True)
class Found:
    """The files of a local source, absolute and sorted, and what else was there and is not read."""

    files: tuple[str, ...]
    others: tuple[str, ...] = ()


def extension(path: str) -> str:
    """The known extension of `path` without .gz, or an empty string."""
    return next((e.removesuffix(".gz") for e in EXTENSIONS if path.lower().endswith(e)), "")


def find_files(path: str) -> Found | None:
    """The files that a source's `path` means; None if it can only be the name of a Hub dataset.

    A path that exists is taken literally, brackets and all; else it is a glob. In folders and globs, files of other
    kinds are left out and named in `others`; hidden files and folders are never looked at.

    Raises:
        InputError: It names the field `path`: nothing is there, nothing readable is there, or it is no regular file.
    """
    full = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(full):
        return _choose(path, sorted(_inside(full)))
    if os.path.lexists(full):
        if not os.path.exists(full) or not stat.S_ISREG(os.stat(full).st_mode):
            raise InputError(f"path: `{path}` is no regular file; expected a file, a folder or a glob of files")
        if not extension(full):
            raise InputError(f"path: unknown extension of `{path}`; expected {', '.join(EXTENSIONS)}")
        return Found((full,))
    if glob.has_magic(path):
        return _choose(path, sorted(glob.glob(_literal_start(full), recursive=True)))
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not extension(path):
        return None
    raise InputError(f"path: no such file or folder as `{path}`; expected an existing path or a Hub dataset's name")


def version_of(file: str) -> str:
    """What changes when the file does. The time of the last change to the inode can't be set back, as mtime can."""
    found = os.stat(file)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _inside(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"path: `{error.filename}` cannot be read ({error.strerror}); expected a folder you may read")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _choose(path: str, candidates: list[str]) -> Found:
    existing = [file for file in candidates if not os.path.isdir(file)]
    files = [file for file in existing if extension(file) and os.path.isfile(file)]
    others = [file for file in existing if not extension(file) or not os.path.isfile(file)]
    if files:
        return Found(tuple(files), tuple(others))
    known = ", ".join(EXTENSIONS)
    if others:
        raise InputError(
            f"path: `{path}` holds no file that can be read: unknown extension of {others[0]}; expected {known}"
        )
    raise InputError(f"path: `{path}` holds no files; expected at least one of {known}")


def _literal_start(pattern: str) -> str:
    """The pattern with the part that exists as it stands escaped, so that its brackets are brackets."""
    parts = pattern.split(os.sep)
    for end in range(len(parts) - 1, 1, -1):
        start = os.sep.join(parts[:end])
        if os.path.isdir(start):
            return os.path.join(glob.escape(start), *parts[end:])
    return pattern
