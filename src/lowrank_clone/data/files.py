"""Finding the files of a source. Imports nothing heavy, so that a wrong path is told at once."""

import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Format = Literal["text", "json", "table"]
_FORMATS: dict[str, Format] = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "table"}
_PACKED = (".gz", ".zst")  # a .parquet file is packed inside
EXTENSIONS = tuple(
    ending + packed for ending, kind in _FORMATS.items() for packed in ("", *(_PACKED if kind != "table" else ()))
)
# What speaks of a folder's texts and is none of them.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|contributing|code_of_conduct|citation|authors|security)"
    r"([-_.].*)?\.(md|txt)|dataset_infos?\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Found:
    """The files of a local source, absolute and sorted, and what else was there and is not read."""

    files: tuple[str, ...]
    others: tuple[str, ...] = ()


def extension(path: str) -> str:
    """The known extension of `path` without .gz and .zst, or an empty string."""
    name = path.lower()
    return next((end.removesuffix(".gz").removesuffix(".zst") for end in EXTENSIONS if name.endswith(end)), "")


def format_of(path: str) -> Format:
    """How a file of a known extension is read: as text, as JSON or as a table."""
    return _FORMATS[extension(path)]


def is_packed(path: str) -> bool:
    """Whether all of a file is packed, so that it can only be read from its start."""
    return path.lower().endswith(_PACKED)


def find_files(path: str) -> Found | None:
    """The files that a source's `path` means; None if it can only be the name of a Hub dataset.

    A path that exists is taken literally, brackets and all; else it is a glob. In folders and globs, files of other
    kinds, those that are about the texts (README.md, LICENSE.txt) and folders that are only linked to are left out and
    named in `others`; hidden files and folders are never looked at. A file's own path is always taken.

    Raises:
        InputError: It names the field `path`: nothing is there, nothing readable is there, or it is no regular file.
    """
    if not path.strip():
        raise InputError("path: is empty; expected a file, a folder, a glob of files or a Hub dataset's name")
    full = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(full):
        return _choose(path, sorted(_inside(full)))
    if os.path.lexists(full):
        if not _is_regular(full):
            raise InputError(f"path: `{path}` is no regular file; expected a file, a folder or a glob of files")
        if not extension(full):
            raise InputError(f"path: unknown extension of `{path}`; expected {', '.join(EXTENSIONS)}")
        return Found((full,))
    if glob.has_magic(path):
        pattern, start = _literal_start(full)
        found = [file for file in glob.glob(pattern, recursive=True) if not _is_hidden(file[len(start) :])]
        if "**" in path:  # it enters linked folders, and one that leads back to itself again and again
            found = list({os.path.realpath(file): file for file in sorted(found, key=len, reverse=True)}.values())
        return _choose(path, sorted(file for file in found if not os.path.isdir(file)))
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not extension(path):
        return None
    raise InputError(f"path: no such file or folder as `{path}`; expected an existing path or a Hub dataset's name")


def version_of(file: str) -> str:
    """What changes when the file does. The time of the last change to the inode can't be set back, as mtime can."""
    found = os.stat(file)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _is_regular(file: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:  # a link to nowhere, or to itself
        return False


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split(os.sep))


def _inside(folder: str) -> Iterator[str]:
    """Files below a folder, and folders that are linked to, which may lie outside or hold the folder itself."""

    def refuse(error: OSError) -> None:
        raise InputError(f"path: `{error.filename}` cannot be read ({error.strerror}); expected a folder you may read")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = [os.path.join(place, name) for name in folders]
        yield from (name for name in inside if os.path.islink(name))
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _choose(path: str, candidates: list[str]) -> Found:
    files: list[str] = []
    others: list[str] = []
    for file in candidates:
        name = os.path.basename(file)
        good = extension(name) and not _ABOUT.fullmatch(name) and _is_regular(file)
        (files if good else others).append(file)
    if files:
        return Found(tuple(files), tuple(others))
    if not others:
        raise InputError(f"path: `{path}` holds no files; expected at least one of {', '.join(EXTENSIONS)}")
    if extension(others[0]):
        why = f"{others[0]} is about a folder's texts; give its own path if it is meant"
        if not _ABOUT.fullmatch(os.path.basename(others[0])):
            why = f"{others[0]} is no regular file; expected at least one of {', '.join(EXTENSIONS)}"
        raise InputError(f"path: `{path}` holds no file that can be read: {why}")
    why = "a folder that is only linked to is not entered:" if os.path.isdir(others[0]) else "unknown extension of"
    raise InputError(
        f"path: `{path}` holds no file that can be read: {why} {others[0]}; expected {', '.join(EXTENSIONS)}"
    )


def _literal_start(pattern: str) -> tuple[str, str]:
    """The pattern with the part that exists as it stands escaped, so that its brackets are brackets; and that part."""
    parts = pattern.split(os.sep)
    for end in range(len(parts) - 1, 1, -1):
        start = os.sep.join(parts[:end])
        if os.path.isdir(start):
            return os.path.join(glob.escape(start), *parts[end:]), start
    return pattern, ""
