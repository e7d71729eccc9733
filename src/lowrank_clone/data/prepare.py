"""Sources → mixed, tokenised, packed blocks. Axis name: `tokens` = `sequence_length`, the fixed length of a block.

1. `read_documents`: every source becomes an Arrow table of documents; a bad row is kept as data (`error`), so that
   counts survive caching and worker processes.
2. `_tokenise`: document → `[bos] ids eos` (bos only where the tokenizer itself adds it).
3. `_held_out`: whole documents go to validation, so no document is on both sides.
4. `_pack`: the documents of one source and one side are joined and cut into blocks; the remainder is dropped.
5. `_mix`: blocks of all sources are interleaved. Blocks are equally long, so a share of blocks is a share of tokens.

A document is a row of a table, a line of JSON, or, for plain text, a file. A text file longer than 64 KiB is split at
blank lines into documents of about that size, so that one huge file can be held out from and is never whole in memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import check_ids, check_sources, check_tokenizer, validation_sources
from .config import DataConfig, SourceConfig
from .read import DOCUMENTS_PER_BATCH, error_reason, find_origins, read_documents
from .report import DataReport, Side, SourceReport

# `datasets` hashes importable functions by name only: raise this when documents, ids or blocks come out differently.
_CACHE_VERSION = 1
_DOCUMENT = Features({"text": Value("string"), "error": Value("string"), "fatal": Value("bool")})
_TOKENISED = Features({"input_ids": List(Value("int32")), "error": Value("string")})


@dataclass(frozen=True)
class Blocks:
    """Packed data: columns `input_ids` and `labels`, both `[tokens]` int32 and equal; no padding, hence no mask."""

    train: Dataset
    validation: Dataset
    report: DataReport


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
        _tokenise,
        batched=True,
        batch_size=DOCUMENTS_PER_BATCH,
        with_indices=True,
        remove_columns=list(_DOCUMENT),
        features=_TOKENISED,
        fn_kwargs={"tokenizer": tokenizer, "source": plain, "strict": strict, "vocab_size": vocab_size},
        num_proc=config.num_proc,
    )


def _tokenise(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    source: SourceConfig,
    strict: bool,
    vocab_size: int,
) -> dict[str, list[Any]]:
    """`input_ids` is `[bos] ids eos`, and empty for a blank or bad row."""
    chat = source.chat_column is not None
    texts, errors = list(batch["text"]), list(batch["error"])
    for i, text in enumerate(texts):
        if chat and text:
            texts[i], errors[i] = _render(text, tokenizer, f"{source.path} document {indices[i]}")
        if errors[i] and (strict or batch["fatal"][i]):
            raise InputError(errors[i])
    rows = [np.empty(0, np.int32) for _ in texts]
    if filled := [i for i, text in enumerate(texts) if text and text.strip()]:
        bos = [] if chat else _bos(tokenizer)  # a chat template writes its own
        chosen = [texts[i] for i in filled]
        encoded = tokenizer(chosen, add_special_tokens=False, return_attention_mask=False)
        for i, ids in zip(filled, encoded["input_ids"], strict=True):
            ended = chat and texts[i].rstrip().endswith(tokenizer.eos_token)  # most templates end a turn with eos
            rows[i] = np.array([*bos, *ids] if ended else [*bos, *ids, tokenizer.eos_token_id], np.int32)
            check_ids(rows[i], tokenizer, vocab_size)
    return {"input_ids": rows, "error": errors}


def _render(text: str, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str | None, str | None]:
    """The chat as text, or the error if the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(json.loads(text), tokenize=False)), None
    except jinja2.TemplateError as error:
        return None, f"{place}: the chat template refuses it ({error_reason(error)}); mend it, or set on_error: skip"


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[bos]` if the tokenizer itself puts it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _lengths(tokens: Dataset) -> np.ndarray:
    """`[documents]` number of tokens of each document; 0 for a blank or bad row."""
    return pc.list_value_length(tokens.data.column("input_ids")).to_numpy()


def _held_out(filled: np.ndarray, fraction: float, seed: list[int], path: str) -> np.ndarray:
    """`[documents]` bool: which of the `filled` documents are held out, at least one."""
    candidates = np.flatnonzero(filled)
    if len(candidates) < 2:
        raise InputError(
            f"source {path}: {len(candidates)} document(s) with text, but a hold-out by document needs at least 2; "
            "give more documents, or set data.validation to sources of its own"
        )
    count = min(max(1, round(fraction * len(candidates))), len(candidates) - 1)
    mask = np.zeros(len(filled), bool)
    mask[np.random.default_rng(seed).choice(candidates, count, replace=False)] = True
    return mask


@dataclass(frozen=True)
class _Part:
    """One source on one side, before mixing."""

    source: SourceConfig
    side: Side
    tokens: Dataset  # of both sides
    mask: np.ndarray  # [documents] bool: those of this side
    blocks: Dataset


def _pack(source: SourceConfig, side: Side, tokens: Dataset, mask: np.ndarray, length: int) -> _Part:
    """Raises InputError if there is less than one block."""
    count = int(_lengths(tokens)[mask].sum())
    if count < length:
        fix = "raise data.validation, give" if side == "validation" else "give"
        raise InputError(
            f"source {source.path}: {count} tokens for {side}, but one block needs {length}; "
            f"{fix} more text, or lower data.sequence_length"
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
    weights = np.array([p.source.weight for p in parts])
    shares = weights / weights.sum()
    sizes = np.array([len(p.blocks) for p in parts])
    total = min((sizes / shares).min(), np.inf if limit is None else limit)
    counts = np.maximum(1, np.round(shares * total)).astype(int)
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
            is skip; less than one block of a source on a side.
    """
    length, held = config.sequence_length, config.validation
    if max_length is not None and length > max_length:
        raise InputError(f"data.sequence_length is {length}, but the model takes at most {max_length} tokens; lower it")
    check_sources(config)
    check_tokenizer(config, tokenizer, vocab_size)
    train, validation = [], []
    for i, source in enumerate(config.sources):
        tokens = _tokens(source, config, tokenizer, vocab_size)
        mask = _lengths(tokens) > 0
        if not isinstance(held, list):
            held_out = _held_out(mask, held, [config.seed, i], source.path)
            validation.append(_pack(source, "validation", tokens, held_out, length))
            mask &= ~held_out
        train.append(_pack(source, "train", tokens, mask, length))
    for source in validation_sources(config):
        tokens = _tokens(source, config, tokenizer, vocab_size)
        validation.append(_pack(source, "validation", tokens, _lengths(tokens) > 0, length))
    train_blocks, train_counts = _mix(train, config.seed, None)
    validation_blocks, validation_counts = _mix(validation, config.seed, config.max_validation_blocks)
    used = zip([*train, *validation], [*train_counts, *validation_counts], strict=True)
    reports = tuple(_report(part, count, not isinstance(held, list)) for part, count in used)
    return Blocks(train_blocks, validation_blocks, DataReport(reports, length))
