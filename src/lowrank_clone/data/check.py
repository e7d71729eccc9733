"""Checks of sources and tokenizer before any long work."""

import itertools
import os
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .config import DataConfig, SourceConfig
from .read import find_origins, local_files, read_documents

_PROBE = 8  # rows of each file that are read before any long work


def check_sources(config: DataConfig) -> None:
    """Finds what can be found cheaply: values, paths, extensions, permissions and the first rows of each file.

    Raises:
        InputError: one line that names the source and says how to mend it.
    """
    _check_values(config)
    seen: dict[Any, str] = {}
    for source in [*config.sources, *validation_sources(config)]:
        files = local_files(source.path)
        if files and (source.name is not None or source.split != "train"):
            raise InputError(f"source {source.path}: name and split select from a Hub dataset; remove them for files")
        for key in map(os.path.realpath, files) if files else [(source.path, source.name, source.split)]:
            if key in seen:
                raise InputError(
                    f"source {source.path}: {key} is already part of source {seen[key]}; expected each file once, or "
                    "its documents are on both sides of the hold-out or twice in the mix; remove one of the two"
                )
            seen[key] = source.path
        for origin in find_origins(source):
            _probe(source, origin, config.on_error == "raise")


def _probe(source: SourceConfig, origin: tuple[str, str], strict: bool) -> None:
    few = replace(source, max_documents=source.max_documents or _PROBE)  # so that a Hub dataset is streamed
    rows = list(itertools.islice(read_documents([origin], few, strict), _PROBE))
    bad = [row for row in rows if row["error"]]
    if bad and (strict or bad[-1]["fatal"] or len(bad) == len(rows)):
        raise InputError(bad[-1]["error"])
    if len(rows) < _PROBE and not any((row["text"] or "").strip() for row in rows):
        raise InputError(f"source {source.path}: {origin[0]} holds no text; expected at least one document; remove it")


def validation_sources(config: DataConfig) -> list[SourceConfig]:
    """The sources that are for validation alone; none where a fraction is held out."""
    return config.validation if isinstance(config.validation, list) else []


def _check_values(config: DataConfig) -> None:
    if not config.sources:
        raise InputError("data.sources is empty; expected at least one file, folder, glob or Hub dataset")
    if config.validation == []:
        raise InputError("data.validation is an empty list; expected a fraction such as 0.01, or at least one source")


def check_tokenizer(config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that can't end documents, lacks a needed chat template or goes beyond the embedding.

    Raises:
        InputError: What is missing.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; expected one, to end documents; set tokenizer.eos_token")
    for source in [*config.sources, *validation_sources(config)]:
        if source.chat_column and not tokenizer.chat_template:
            raise InputError(
                f"source {source.path}: chat_column is set but the tokenizer has no chat template; expected one; "
                "set tokenizer.chat_template, or use text_column"
            )
    check_ids(np.array([tokenizer.eos_token_id]), tokenizer, vocab_size)


def check_ids(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse token ids beyond the model's embedding.

    Raises:
        InputError: The largest of `ids` is none of `vocab_size` rows.
    """
    worst = int(ids.max())
    if worst >= vocab_size:
        raise InputError(
            f"token {tokenizer.convert_ids_to_tokens(worst)!r} has id {worst}, beyond the model's embedding of "
            f"{vocab_size} rows; expected the model's own tokenizer"
        )
