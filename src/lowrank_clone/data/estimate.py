"""How much text there is, about, before it is tokenised: a sample of every source, scaled by its bytes."""

import os
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import keyed_sources, named
from .config import DataConfig, SourceConfig
from .files import Found, find_files, format_of
from .mix import Stock, mix
from .readers.documents import Document
from .readers.parts import split_source
from .readers.reading import read_documents
from .readers.sampling import sample_file, unpacked_size
from .readers.text_files import CHUNK
from .tokenise import Tokeniser

_WHOLE = 2 * 2**20  # bytes of a source up to which all of it is read
_FILES = 16  # files of a larger one that are looked into, evenly spread
_ROWS = 64  # rows of each, of a .parquet file
_BYTES = 256 * 1024  # bytes of each, of others


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
    doubts: tuple[str, ...] = ()
    """What would be refused if the estimates were exact."""


def estimate_text(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, run_tokens: int | None = None
) -> TextEstimate:
    """Documents, tokens and blocks of each source, within a second or two; local text of up to 2 MiB is counted.

    Args:
        run_tokens: Tokens that the run will read; None if it is counted in passes.

    Raises:
        InputError: What is read on the way can't be; or, all being counted, a source is too small for the mix.
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
    validation, most = -(-sides // length), config.max_validation_blocks
    counted = int(validation.sum()) if most is None else min(int(validation.sum()), most)
    if (sizes < length).any():  # told where it is counted
        return TextEstimate(tuple(found), 0, counted, exact)
    stocks = [
        Stock(one.key, source, int(-(-size // length)), int(size))
        for one, source, size in zip(train, config.sources, sizes, strict=True)
    ]
    try:
        blocks = sum(mix(stocks, config, run_tokens).counts)
    except InputError as error:
        if exact:
            raise
        return TextEstimate(tuple(found), None, counted, exact, (str(error),))
    return TextEstimate(tuple(found), blocks, counted, exact)


def _estimate_source(
    key: str, source: SourceConfig, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> SourceEstimate:
    found = find_files(source.path)
    if found is None:
        return SourceEstimate(key, source.path, None, None, False)
    strict = config.on_error == "raise"
    with named(key):
        return _look_into(key, source, found, strict, tokenizer)


def _look_into(
    key: str, source: SourceConfig, found: Found, strict: bool, tokenizer: PreTrainedTokenizerBase
) -> SourceEstimate:
    files, others = list(found.files), len(found.others)
    if any(format_of(file) == "table" for file in files) or sum(map(unpacked_size, files)) > _WHOLE:
        documents, tokens = _sampled(source, files, strict, tokenizer)
        return SourceEstimate(key, source.path, round(documents), round(tokens), False, others)
    rows = [row for part in split_source(source) for row in read_documents(part, source, strict)]
    lengths = _lengths(rows, source, tokenizer, strict)
    if not lengths.any():
        raise InputError(f"path: `{source.path}` holds no text; expected at least one document")
    return SourceEstimate(key, source.path, int((lengths > 0).sum()), int(lengths.sum()), True, others)


def _sampled(
    source: SourceConfig, files: list[str], strict: bool, tokenizer: PreTrainedTokenizerBase
) -> tuple[float, float]:
    """Documents and tokens of a source by a look into some of its files."""
    documents = tokens = size = 0.0
    for file in files[:: -(-len(files) // _FILES)]:
        share, rows = sample_file(file, source, _BYTES, _ROWS)
        starts = [row if row.text is None else row._replace(text=row.text[:_BYTES]) for row in rows]
        scales = [1.0 if row.text is None else len(row.text) / min(len(row.text), _BYTES) for row in rows]
        lengths = _lengths(starts, source, tokenizer, strict) * scales
        if share > 0:
            documents += (lengths > 0).sum() / share
            tokens += lengths.sum() / share
        size += os.path.getsize(file)
    scale = sum(map(os.path.getsize, files)) / max(size, 1)
    documents, tokens = documents * scale, tokens * scale
    if all(format_of(file) == "text" for file in files):
        documents = sum(-(-unpacked_size(file) // CHUNK) for file in files)  # as the reader cuts them
    if source.max_documents is not None and documents > source.max_documents:
        return source.max_documents, tokens * source.max_documents / documents
    return documents, tokens


def _lengths(
    rows: list[Document], source: SourceConfig, tokenizer: PreTrainedTokenizerBase, strict: bool
) -> np.ndarray:
    """`[documents]` tokens of each; 0 for bad, blank and dropped rows.

    Raises:
        InputError: With `strict`, the first row that is bad, or that the chat template refuses; an unreadable file.
    """
    encoded = Tokeniser(tokenizer, source, len(tokenizer) + 2**20).encode(rows)
    for row, one in zip(rows, encoded, strict=True):
        if one.error is not None and (strict or row.fatal):
            raise InputError(one.error)
    return np.array([len(one.ids) for one in encoded], float)
