"""Checks of the sources before any long work. Imports nothing heavy, so that mistakes are told at once."""

import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import InputError, count_of
from .config import DataConfig, SourceConfig
from .files import find_files
from .readers.documents import Document
from .readers.hub import split_hub
from .readers.opening import readable
from .readers.parts import file_part
from .readers.reading import ADVICE, read_documents

_PROBE = 8  # rows of each file that are read before any long work
_PROBED = 1000  # files of a source that are looked into, evenly spread, where there are more

_DEFAULT = SourceConfig(path="")


def keyed_sources(config: DataConfig) -> list[tuple[str, SourceConfig]]:
    """(`data.sources.0`, the source) for all sources, those for training first."""
    train = [(f"data.sources.{i}", source) for i, source in enumerate(config.sources)]
    return train + [(f"data.validation.{i}", source) for i, source in enumerate(validation_sources(config))]


def validation_sources(config: DataConfig) -> list[SourceConfig]:
    """The sources that are for validation alone; none where it is a fraction of the training sources."""
    return config.validation if isinstance(config.validation, list) else []


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put the key of a source before the field that an error inside names: `data.sources.0.path: ...`"""
    try:
        yield
    except InputError as error:
        names_a_field = re.match(r"\w+: ", str(error))
        raise InputError(f"{key}{'.' if names_a_field else ': '}{error}") from error


def check_length(config: DataConfig, longest: int | None) -> None:
    """Refuse sequences that are longer than the model takes.

    Args:
        longest: Tokens that the model takes (its max_position_embeddings); None if it has no limit.

    Raises:
        InputError: They are longer.
    """
    if longest is not None and config.sequence_length > longest:
        raise InputError(
            f"data.sequence_length: got {config.sequence_length}, the model takes at most {longest} tokens; lower it"
        )


def check_sources(config: DataConfig) -> None:
    """Find what can be found cheaply: paths, extensions, permissions and the first rows of each file.

    Raises:
        InputError: It names the key and says how to mend it.
    """
    if not config.sources:
        raise InputError("data.sources: is empty; expected at least one file, folder, glob or Hub dataset")
    if config.validation == []:
        raise InputError("data.validation: is an empty list; expected a fraction such as 0.01, or at least one source")
    seen: dict[Any, str] = {}
    for key, source in keyed_sources(config):
        with named(key):
            _check_once(source, key, seen)
            held_out = not isinstance(config.validation, list)
            _probe_source(source, config.on_error == "raise", held_out)


def _check_once(source: SourceConfig, key: str, seen: dict[Any, str]) -> None:
    """Each file and each split stands in one source only, unless other rows or another column are taken of it."""
    found = find_files(source.path)
    hub_only = {"name": source.name, "revision": source.revision, "split": source.split}
    for field, value in hub_only.items():
        if found is not None and value != getattr(_DEFAULT, field):
            raise InputError(
                f"{field}: name and split select from a Hub dataset, as revision does, and `{source.path}` is local; "
                "remove them"
            )
    taken = (source.column, str(source.filter))
    names: Iterable[str] = [source.path] if found is None else found.files
    for name in names:
        origin = (*hub_only.values(), name) if found is None else _inode(name)
        if (origin, taken) in seen:
            raise InputError(
                f"path: {name} is already part of {seen[origin, taken]}; expected each file once, or its documents are "
                "on both sides of the hold-out or twice in the mix; remove one of the two"
            )
        seen[origin, taken] = key


def _inode(file: str) -> tuple[int, int]:
    """What two names of one file have in common."""
    with readable(file):
        found = os.stat(file)
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
    return found.st_dev, found.st_ino


def _probe_source(source: SourceConfig, strict: bool, held_out: bool) -> None:
    """The first rows of every file; a file without text harms no others, a source without text is refused."""
    few = replace(source, max_documents=min(source.max_documents or _PROBE, _PROBE))
    found = find_files(source.path)
    files = () if found is None else found.files
    chosen = files[:: -(-len(files) // _PROBED)] if files else ()
    parts = [file_part(file) for file in chosen] or split_hub(few, one=True)
    documents, whole, dropped = 0, len(chosen) == len(files), Counter[str]()
    hopeless: str | None = None
    for part in parts:
        rows = list(itertools.islice(read_documents(part, few, strict), _PROBE))
        hopeless = _refuse_bad(rows, strict) or hopeless
        dropped.update(row.dropped for row in rows if row.dropped)
        documents += sum(row.error is None and row.dropped is None for row in rows)
        whole &= len(rows) < _PROBE
    if documents == 0 and hopeless:
        raise InputError(hopeless)
    several = f"in {len(parts):,} files" if len(parts) > 1 else f"in {files[0] if files else source.path}"
    if documents == 0 and whole:
        reasons = ", ".join(f"{count_of(count, 'row')} left out: {reason}" for reason, count in dropped.items())
        raise InputError(
            f"path: `{source.path}` holds no text {several}{f' ({reasons})' if reasons else ''}; expected at least one "
            "document"
        )
    if held_out and whole and documents == 1:
        raise InputError(one_document(source.path))


def _refuse_bad(rows: list[Document], strict: bool) -> str | None:
    """Raise for the first rows of a file: a bad one where bad rows are not skipped, and where many are all bad.

    Returns:
        The error where all of only a few rows are bad, which is so much of a source only if its other files are.

    Raises:
        InputError: It is the row's error.
    """
    bad = [row for row in rows if row.error is not None]
    if bad and (strict or bad[-1].fatal):
        raise InputError(str(bad[-1].error))
    if not bad or len(bad) < len(rows):
        return None
    more = f"; and so are all of its first {len(bad)} rows" if len(bad) > 1 else ""
    if len(bad) == _PROBE:
        raise InputError(f"{str(bad[0].error).removesuffix(ADVICE)}{more}")
    return f"{str(bad[0].error).removesuffix(ADVICE)}{more}"


def one_document(path: str) -> str:
    """Why one document can't be trained on by itself, and what to do."""
    return (
        f"path: `{path}` is one document with text, but a hold-out for validation takes whole documents and needs at "
        "least 2; split it into several files (text files of more than 64 KiB are split by themselves), or give "
        "data.validation a file of its own"
    )
