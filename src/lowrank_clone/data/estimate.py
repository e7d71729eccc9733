"""How much text there is, about, before it is tokenised: a sample of every source, scaled by its bytes."""

import gzip
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import keyed_sources, named
from .config import DataConfig, SourceConfig
from .files import Found, extension, find_files, version_of
from .read import open_file, read_documents, readable
from .tokenise import tokenise

_WHOLE = 2 * 2**20  # bytes of a source up to which all of it is read
_FILES = 16  # files of a larger one that are looked into, evenly spread
_ROWS = 64  # documents of each
_BYTES = 256 * 1024  # about the bytes of each
_TEXT = 60_000  # bytes of a document that the reader makes of a long text, about


@dataclass(frozen=True)
class SourceEstimate:
    """One source: what it holds, whether all of it was counted; None where it is on the Hub and its size unknown."""

    key: str
    path: str
    documents: int | None
    tokens: int | None
    exact: bool
    others: int = 0
    """Files that are there and are not read."""


@dataclass(frozen=True)
class TextEstimate:
    """All sources, and the blocks that they give; None where a source's size is unknown."""

    sources: tuple[SourceEstimate, ...]
    train_blocks: int | None
    validation_blocks: int | None
    exact: bool


def estimate_text(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> TextEstimate:
    """Documents, tokens and blocks of each source, within a second or two; local text of up to 2 MiB is counted.

    Raises:
        InputError: What is read on the way can't be.
    """
    found = [_estimate_source(key, source, config, tokenizer) for key, source in keyed_sources(config)]
    train, rest = found[: len(config.sources)], found[len(config.sources) :]
    exact = all(source.exact for source in found)
    if any(source.tokens is None for source in found):
        return TextEstimate(tuple(found), None, None, False)
    length, held = config.sequence_length, config.validation
    sizes = np.array([source.tokens or 0 for source in train], float)
    sides = np.array([source.tokens or 0 for source in rest], float)
    if not isinstance(held, list):
        sides = np.minimum(np.maximum(held * sizes, length), sizes)
        sizes = sizes - sides
    weights = np.array([source.weight for source in config.sources])
    most = config.max_validation_blocks
    blocks = mix_counts(sizes // length, weights, None)
    validation = sides // length
    counted = int(validation.sum()) if most is None else min(int(validation.sum()), most)
    return TextEstimate(tuple(found), int(blocks.sum()), counted, exact)


def mix_counts(sizes: np.ndarray, weights: np.ndarray, limit: int | None) -> np.ndarray:
    """`[sources]` blocks that a mix takes of each: in shares of the weights, until the first would have to repeat, or
    about `limit` in all. Every source that has a block gives at least one."""
    shares = weights / weights.sum()
    total = min((sizes / shares).min(), np.inf if limit is None else limit)
    return np.minimum(np.maximum(1, np.round(shares * total)), np.maximum(sizes, 0)).astype(int)


def _estimate_source(
    key: str, source: SourceConfig, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> SourceEstimate:
    found = find_files(source.path)
    if found is None:
        return SourceEstimate(key, source.path, None, None, False)
    strict = config.on_error == "raise"
    with named(key), readable(source.path):
        return _look_into(key, source, found, strict, tokenizer)


def _look_into(
    key: str, source: SourceConfig, found: Found, strict: bool, tokenizer: PreTrainedTokenizerBase
) -> SourceEstimate:
    files = list(found.files)
    whole = sum(map(_unpacked_size, files)) <= _WHOLE and not any(file.endswith(".parquet") for file in files)
    if whole:
        rows = list(read_documents([(file, version_of(file)) for file in files], source, strict))
        for row in rows:
            if row["error"] and (strict or row["fatal"]):
                raise InputError(row["error"])
        lengths = _lengths(rows, source, tokenizer, strict)
        if not lengths.any():
            raise InputError(f"path: `{source.path}` holds no text; expected at least one document")
        return SourceEstimate(key, source.path, int((lengths > 0).sum()), int(lengths.sum()), True, len(found.others))
    chosen = files[:: -(-len(files) // _FILES)]
    documents = tokens = share = 0.0
    for file in chosen:
        part, lengths = _sample(file, source, tokenizer, strict)
        if part > 0:
            documents += (lengths > 0).sum() / part
            tokens += lengths.sum() / part
        share += os.path.getsize(file)
    scale = sum(map(os.path.getsize, files)) / max(share, 1)
    documents, tokens = documents * scale, tokens * scale
    if all(extension(file) == ".txt" for file in files):
        documents = sum(-(-int(_unpacked_size(file)) // _TEXT) for file in files)
    if source.max_documents is not None and documents > source.max_documents:
        documents, tokens = source.max_documents, tokens * source.max_documents / documents
    return SourceEstimate(key, source.path, round(documents), round(tokens), False, len(found.others))


def _sample(
    file: str, source: SourceConfig, tokenizer: PreTrainedTokenizerBase, strict: bool
) -> tuple[float, np.ndarray]:
    """The share of a file that was looked into, and the lengths of the documents in it."""
    rows: list[dict[str, Any]] = []
    if extension(file) == ".parquet":
        import pyarrow.parquet as pq

        count = pq.ParquetFile(file).metadata.num_rows
        rows = list(itertools.islice(_rows(file, source), _ROWS))
        return len(rows) / max(count, 1), _lengths(rows, source, tokenizer, strict)
    size, seen = _unpacked_size(file), 0
    with open_file(file) as stream:
        start = stream.read(_BYTES)
    if extension(file) == ".txt":
        whole = len(start) >= size
        text = start.decode("utf-8", errors="replace")
        # The reader makes documents of at least 64 KiB of a long text, and the eos of each is one token more.
        rows = [{"text": text[i : i + 65536], "error": None, "fatal": False} for i in range(0, len(text), 65536)]
        return (1.0 if whole else len(start) / size), _lengths(rows, source, tokenizer, strict)
    lines = [line for line in start.splitlines(keepends=True) if line.endswith(b"\n") or len(start) >= size]
    for line, row in zip(lines[:_ROWS], _rows(file, source), strict=False):
        rows.append(row)
        seen += len(line)
    return seen / max(size, 1), _lengths(rows, source, tokenizer, strict)


def _rows(file: str, source: SourceConfig) -> Iterator[dict[str, Any]]:
    return read_documents([(file, version_of(file))], replace(source, max_documents=None), False)


def _unpacked_size(file: str) -> float:
    """Bytes of a file's text; of a packed one by how far its first part unpacks."""
    size = os.path.getsize(file)
    if not file.lower().endswith(".gz") or size == 0:
        return size
    with readable(file), open(file, "rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
        unpacked = len(stream.read(_BYTES))
        if raw.tell() < size:
            return size * unpacked / raw.tell()
        while piece := stream.read(_BYTES):  # the rest is in memory already
            unpacked += len(piece)
        return unpacked


def _lengths(
    rows: list[dict[str, Any]], source: SourceConfig, tokenizer: PreTrainedTokenizerBase, strict: bool
) -> np.ndarray:
    """`[documents]` tokens of each; 0 for bad rows.

    Raises:
        InputError: With `strict`, the first row that is bad, or that the chat template refuses.
    """
    batch = {name: [row[name] for row in rows] for name in ("text", "error", "fatal")}
    ids = tokenise(batch, list(range(len(rows))), tokenizer, source, strict, len(tokenizer) + 2**20)["input_ids"]
    return np.array([len(one) for one in ids], float)
