"""Checks of the sources before any long work. Imports nothing heavy, so that mistakes are told at once."""

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .config import DataConfig, SourceConfig
from .files import find_files
from .read import ADVICE, find_origins, read_documents

_PROBE = 8  # rows of each file that are read before any long work


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
    """Each file and each split stands in one source only."""
    found = find_files(source.path)
    if found is not None and (source.name is not None or source.split != "train"):
        field = "split" if source.name is None else "name"
        raise InputError(
            f"{field}: name and split select from a Hub dataset, and `{source.path}` is local; remove them"
        )
    origins = [(source.path, source.name, source.split)] if found is None else map(os.path.realpath, found.files)
    for origin in origins:
        if origin in seen:
            raise InputError(
                f"path: {origin} is already part of {seen[origin]}; expected each file once, or its documents are on "
                "both sides of the hold-out or twice in the mix; remove one of the two"
            )
        seen[origin] = key


def _probe_source(source: SourceConfig, strict: bool, held_out: bool) -> None:
    """The first rows of every origin; a file without text harms no others, a source without text is refused."""
    origins = find_origins(source)
    few = replace(
        source, max_documents=min(source.max_documents or _PROBE, _PROBE)
    )  # so that a Hub dataset is streamed
    documents, whole = 0, True
    for origin in origins:
        rows = list(itertools.islice(read_documents([origin], few, strict), _PROBE))
        bad = [row for row in rows if row["error"]]
        if bad and (strict or bad[-1]["fatal"]):
            raise InputError(bad[-1]["error"])
        if bad and len(bad) == len(rows):
            raise InputError(f"{bad[0]['error'].removesuffix(ADVICE)}; and so are all of its first {len(bad)} rows")
        documents += sum(bool((row["text"] or "").strip()) for row in rows)
        whole &= len(rows) < _PROBE
    if documents == 0 and whole:
        several = f"in {len(origins):,} files" if len(origins) > 1 else f"in {origins[0][0]}"
        raise InputError(f"path: `{source.path}` holds no text {several}; expected at least one document")
    if held_out and whole and documents == 1:
        raise InputError(one_document(source.path))


def one_document(path: str) -> str:
    """Why one document can't be trained on by itself, and what to do."""
    return (
        f"path: `{path}` is one document with text, but a hold-out for validation takes whole documents and needs at "
        "least 2; split it into several files (text files of more than 64 KiB are split by themselves), or give "
        "data.validation a file of its own"
    )
