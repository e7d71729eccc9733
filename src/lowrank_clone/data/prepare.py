"""Sources → mixed, tokenised, packed blocks. Axis name: `tokens` = `sequence_length`, the fixed length of a block.

1. `read_documents`: every source becomes an Arrow table of documents; a bad row is kept as data (`error`), so that
   counts survive caching and worker processes.
2. `tokenise`: document → `[bos] ids eos` (bos only where the tokenizer itself adds it).
3. `hold_out`: whole documents go to validation, so no document is on both sides.
4. `_pack`: the documents of one source and one side are joined and cut into blocks; the remainder is dropped.
5. `_mix`: blocks of all sources are interleaved. Blocks are equally long, so a share of blocks is a share of tokens.

A document is a row of a table, a line of JSON, or, for plain text, a file. A text file longer than 64 KiB is split at
blank lines into documents of at most that size: one huge file can be held out from and is never whole in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import check_length, check_sources, keyed_sources, named, one_document
from .config import DataConfig, SourceConfig
from .estimate import mix_counts
from .files import find_files
from .read import DOCUMENTS_PER_BATCH, error_reason, find_origins, read_documents
from .report import DataReport, Side, SourceReport
from .tokenise import tokenise
from .tokenizer import check_tokenizer

# `datasets` hashes importable functions by name only: raise this when documents, ids or blocks come out differently.
_CACHE_VERSION = 2
_DOCUMENT = Features({"text": Value("string"), "error": Value("string"), "fatal": Value("bool")})
_TOKENISED = Features({"input_ids": List(Value("int32")), "error": Value("string"), "spelt": Value("bool")})


@dataclass(frozen=True)
class Blocks:
    """Packed data: columns `input_ids` and `labels`, both `[tokens]` int32 and equal; no padding, hence no mask."""

    train: Dataset
    validation: Dataset
    report: DataReport


@contextmanager
def _cache_errors() -> Iterator[None]:
    """A cache that can't be written, as one line; `datasets` wraps what happens while it writes."""
    try:
        yield
    except (OSError, pa.ArrowException, DatasetGenerationError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, InputError):
            raise cause from error
        raise InputError(
            f"the cache of tokenised text in `{datasets.config.HF_DATASETS_CACHE}` can't be written or read "
            f"({error_reason(cause)}); free some space there, or set HF_DATASETS_CACHE to another folder"
        ) from error


def _tokens(source: SourceConfig, config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Dataset:
    """Rows of `_TOKENISED`, one per document."""
    origins, strict = find_origins(source), config.on_error == "raise"
    plain = replace(source, weight=1.0)  # another weight must not read and tokenise again
    # A limit counts over all origins, so it needs a single worker.
    workers = 1 if source.max_documents else min(config.num_proc or 1, len(origins))
    documents = Dataset.from_generator(
        read_documents,
        features=_DOCUMENT,
        gen_kwargs={
            # `datasets` deals out a list, element by element, and hands over a tuple whole.
            "origins": origins if workers > 1 else tuple(origins),
            "source": plain,
            "strict": strict,
        },
        num_proc=workers if workers > 1 else None,
        fingerprint=Hasher.hash([_CACHE_VERSION, origins, plain, strict]),  # the same for any number of workers
    )
    return documents.map(
        tokenise,
        batched=True,
        batch_size=DOCUMENTS_PER_BATCH,
        with_indices=True,
        remove_columns=list(_DOCUMENT),
        features=_TOKENISED,
        fn_kwargs={"tokenizer": tokenizer, "source": plain, "strict": strict, "vocab_size": vocab_size},
        num_proc=config.num_proc,
    )


def _lengths(tokens: Dataset) -> np.ndarray:
    """`[documents]` number of tokens of each document; 0 for a blank or bad row."""
    return pc.list_value_length(tokens.data.column("input_ids")).to_numpy()


def hold_out(lengths: np.ndarray, fraction: float, block: int, seed: list[int]) -> np.ndarray:
    """Which documents go to validation: whole ones in random order, until they have their share and fill a block.

    A document that overshoots the share by a quarter is passed over while others do; where none does, one of the
    shorter half of the rest is taken. So the share is met closely where documents are short, and where they are as
    long as books the training side loses no more than it must.

    Args:
        lengths: `[documents]` tokens of each; 0 for blank and bad rows, which are on no side. At least two are above 0.
        fraction: Share of all tokens.
        block: Tokens of one block.

    Returns:
        `[documents]` bool; at least one document is held out, and at least one is not.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(lengths > 0))
    target = max(fraction * int(lengths.sum()), block)
    mask = np.zeros(len(lengths), bool)
    held = 0
    for document in order:
        if held < target and held + lengths[document] <= 1.25 * target:
            mask[document] = True
            held += int(lengths[document])
    while held < target or not mask.any():
        rest = order[~mask[order]]
        if len(rest) < 2:
            break
        shorter = rest[lengths[rest] <= np.median(lengths[rest])]
        mask[shorter[0]] = True
        held += int(lengths[shorter[0]])
    if mask[order].all():
        mask[order[-1]] = False
    return mask


def _held_out(tokens: Dataset, config: DataConfig, index: int, path: str) -> np.ndarray:
    """`[documents]` bool: what `hold_out` chooses of this source.

    Raises:
        InputError: There is nothing to choose from.
    """
    lengths = _lengths(tokens)
    count = int((lengths > 0).sum())
    if count == 1:
        raise InputError(one_document(path))
    if count == 0:
        raise InputError(f"path: `{path}` has 0 documents with text{_first_error(tokens)}; expected at least 2")
    block, total = config.sequence_length, int(lengths.sum())
    if total < 2 * block:
        raise InputError(
            f"path: `{path}` has {total:,} tokens, but a block for training and one for validation need {2 * block:,}; "
            f"give more text, or lower data.sequence_length to {max(2, total // 4):,} or less"
        )
    assert isinstance(config.validation, float)
    return hold_out(lengths, config.validation, config.sequence_length, [config.seed, index])


def _first_error(tokens: Dataset) -> str:
    errors = tokens.data.column("error").drop_null()
    return f" and {len(errors):,} malformed rows, the first: {errors[0].as_py()}" if len(errors) else ""


@dataclass(frozen=True)
class _Part:
    """One source on one side, before mixing."""

    source: SourceConfig
    side: Side
    tokens: Dataset  # of both sides
    mask: np.ndarray  # [documents] bool: those of this side
    blocks: Dataset


def _pack(source: SourceConfig, side: Side, tokens: Dataset, mask: np.ndarray, length: int) -> _Part:
    """The blocks of one source on one side.

    Raises:
        InputError: There is less than one block.
    """
    lengths = _lengths(tokens)
    count, whole = int(lengths[mask].sum()), int(lengths.sum())
    if count < length:
        other = f", of {whole:,} in all," if count < whole else ""
        raise InputError(
            f"path: `{source.path}` has {count:,} tokens for {side}{other} but one block needs {length:,}; give more "
            f"text, or lower data.sequence_length to {max(2, (whole if count < whole else count) // 4):,} or less"
        )
    blocks = Dataset.from_generator(
        _cut,
        features=Features({"input_ids": List(Value("int32"), length=length)}),
        gen_kwargs={"tokens": tokens, "mask": mask, "length": length},
        fingerprint=Hasher.hash([_CACHE_VERSION, tokens._fingerprint, mask.tobytes(), length]),
    )
    return _Part(source, side, tokens, mask, blocks)


def _cut(tokens: Dataset, mask: np.ndarray, length: int) -> Iterator[dict[str, np.ndarray]]:
    """Blocks `[tokens]` of the documents that `mask` selects, in order; one sequential read, no remainder per batch."""
    rest, start = np.empty(0, np.int32), 0
    for table in tokens.with_format("arrow").iter(batch_size=DOCUMENTS_PER_BATCH):
        chosen = table.column("input_ids").filter(pa.array(mask[start : start + len(table)]))
        start += len(table)
        stream = np.concatenate([rest, pc.list_flatten(chosen).to_numpy()])
        whole = len(stream) // length * length
        yield from ({"input_ids": block} for block in stream[:whole].reshape(-1, length))
        rest = stream[whole:]


def _mix(parts: list[_Part], seed: int, limit: int | None) -> tuple[Dataset, list[int]]:
    """Blocks of all parts and how many of each: shuffled within a part, and in every stretch in shares of the weights.

    The mix ends where the first part would have to repeat, or after about `limit` blocks.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([len(p.blocks) for p in parts])
    counts = mix_counts(sizes, np.array([p.source.weight for p in parts]), limit)
    offsets = np.cumsum(sizes) - sizes
    chosen = [start + rng.permutation(size)[:n] for start, size, n in zip(offsets, sizes, counts, strict=True)]
    places = [(np.arange(n) + rng.random(n)) / n for n in counts]
    ids = concatenate_datasets([p.blocks for p in parts])
    # Both names map the same file, so labels cost no disk.
    joined = concatenate_datasets([ids, ids.rename_column("input_ids", "labels")], axis=1)
    return joined.select(np.concatenate(chosen)[np.argsort(np.concatenate(places))]), counts.tolist()


def _report(part: _Part, used: int, shared: bool) -> SourceReport:
    lengths, errors = _lengths(part.tokens), part.tokens.data.column("error").drop_null()
    tokens = int(lengths[part.mask].sum())
    elsewhere = shared and part.side == "validation"  # a bad row is on no side; it is counted once
    found = find_files(part.source.path)
    return SourceReport(
        path=part.source.path,
        part=part.side,
        documents=int(part.mask.sum()),
        tokens=tokens,
        blocks=used,
        unused_blocks=len(part.blocks) - used,
        dropped_tokens=tokens % part.blocks.features["input_ids"].length,
        skipped=0 if elsewhere else len(errors),
        blank=0 if elsewhere else int((lengths == 0).sum()) - len(errors),
        first_skipped=None if elsewhere or not len(errors) else errors[0].as_py(),
        spelt=0 if elsewhere else int(pc.sum(part.tokens.data.column("spelt")).as_py() or 0),
        other_files=() if elsewhere or found is None else found.others,
    )


def prepare(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, vocab_size: int
) -> Blocks:
    """Tokenised blocks for training and validation, the same for the same files, tokenizer and seed.

    Args:
        max_length: longest sequence the model takes (its max_position_embeddings); None if it has no limit.
        vocab_size: rows of the model's embedding.

    Raises:
        InputError: all that `check_sources` finds; a sequence_length beyond max_length; a tokenizer without eos or
            without the chat template that a source needs; an id beyond vocab_size; a malformed row, unless on_error
            is skip; less than one block of a source on a side; a cache that can't be written.
    """
    length, shared = config.sequence_length, not isinstance(config.validation, list)
    check_length(config, max_length)
    check_sources(config)
    check_tokenizer(config, tokenizer, vocab_size)
    train, validation = [], []
    for i, (key, source) in enumerate(keyed_sources(config)):
        with named(key), _cache_errors():
            tokens = _tokens(source, config, tokenizer, vocab_size)
            mask = _lengths(tokens) > 0
            if i >= len(config.sources):
                validation.append(_pack(source, "validation", tokens, mask, length))
                continue
            if shared:
                held_out = _held_out(tokens, config, i, source.path)
                validation.append(_pack(source, "validation", tokens, held_out, length))
                mask &= ~held_out
            train.append(_pack(source, "train", tokens, mask, length))
    with _cache_errors():
        train_blocks, train_counts = _mix(train, config.seed, None)
        validation_blocks, validation_counts = _mix(validation, config.seed, config.max_validation_blocks)
    used = zip([*train, *validation], [*train_counts, *validation_counts], strict=True)
    reports = tuple(_report(part, count, shared) for part, count in used)
    return Blocks(train_blocks, validation_blocks, DataReport(reports, length))
