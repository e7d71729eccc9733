"""Sources → shards → sides → blocks → mix: all that stands between a recipe and the rows of a trainer.

1. `make_shards`: every source is tokenised once into shards on the disk, which any number of runs and processes read.
2. `choose`: which documents are on which side, by their hashes.
3. `pack`: the documents of a source and side become blocks of `sequence_length` tokens.
4. `mix`: how many blocks of each source one pass takes, and in which order they stand.

What follows 1 is arithmetic over small arrays: nothing of the text is copied or read until a row is asked for.

A document is a row of a table, an object of JSON, or a file of plain text. A text file of more than 64 KiB is split at
blank lines into documents of at most that size: one huge file can be held out from and is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .blocks import PackedBlocks
from .check import check_length, check_sources, keyed_sources
from .config import DataConfig, SourceConfig
from .files import find_files
from .identity import digest_of, made_of
from .make_shards import make_shards
from .mix import Stock, mix, mixed_order, needed_tokens, validation_counts
from .near import first_of_near
from .packing import Packing, pack
from .report import DataReport, Side, SourceReport
from .shards import TokenSource
from .tokenizer import bos_ids, check_tokenizer
from .view import Chosen, choose


@dataclass(frozen=True)
class Blocks:
    """Packed data: rows of `input_ids` `[sequence_length]` int64, and what else `PackedBlocks` says.

    digests: Of all rows of a side in their order. made_of: What decides them, by names that a user knows.
    """

    train: PackedBlocks
    validation: PackedBlocks
    report: DataReport
    digests: dict[Side, str]
    made_of: dict[Side, dict[str, str]]


@dataclass(frozen=True)
class _Part:
    """One source on one side, packed."""

    key: str
    source: SourceConfig
    shards: TokenSource
    chosen: Chosen
    packing: Packing

    @property
    def stock(self) -> Stock:
        return Stock(self.key, self.source, len(self.packing), self.packing.tokens)


def prepare(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    vocab_size: int,
    run_tokens: int | None = None,
    progress: bool = False,
) -> Blocks:
    """Blocks for training and validation, the same for the same texts, tokenizer and seed; missing shards are made.

    Args:
        max_length: Longest sequence the model takes (its max_position_embeddings); None if it has no limit.
        vocab_size: Rows of the model's embedding.
        run_tokens: Tokens that the run will read; None if it is counted in passes. Of Hub datasets no more is
            downloaded, and where sources have budgets the others share the rest of it.
        progress: Whether to say on stderr which shards are made or used again, and how far they are.

    Raises:
        InputError: All that `check_sources`, `make_shards`, `choose` and `mix` find; a sequence_length beyond
            max_length; a tokenizer without eos or without the chat template that a source needs; an id beyond
            vocab_size; less than one block of a source on a side.
    """
    check_length(config, max_length)
    check_sources(config)
    check_tokenizer(config, tokenizer, vocab_size)
    keyed, needed = keyed_sources(config), needed_tokens(config, run_tokens)
    shards = make_shards(keyed, config, tokenizer, vocab_size, needed=needed, progress=progress)
    near = first_of_near(shards, tokenizer, progress) if config.deduplicate == "minhash" else None
    view = choose([(key, source.path, one) for (key, source), one in zip(keyed, shards, strict=True)], config, near)
    bos = bos_ids(tokenizer)
    sources = [(key, source, one) for (key, source), one in zip(keyed, shards, strict=True)]
    train = _packed("train", sources[: len(config.sources)], view.train, config, bool(bos))
    validation = _packed("validation", sources[-len(view.validation) :], view.validation, config, bool(bos))
    mixed = mix([part.stock for part in train], config, run_tokens)
    shares = mixed.counts if len(validation) == len(train) and not isinstance(config.validation, list) else None
    weights = shares or [part.source.weight for part in validation]
    held = validation_counts([len(part.packing) for part in validation], weights, config.max_validation_blocks)
    sides: dict[Side, tuple[list[_Part], Sequence[int]]]
    sides = {"train": (train, mixed.counts), "validation": (validation, held)}
    rows = {name: _rows(parts, counts, config, bos, _pad_id(tokenizer)) for name, (parts, counts) in sides.items()}
    reports = [report for name, (parts, counts) in sides.items() for report in _reports(name, parts, counts)]
    return Blocks(
        rows["train"],
        rows["validation"],
        DataReport(tuple(reports), config.sequence_length, mixed.lines),
        {name: digest_of(rows[name], [(p.shards, p.chosen) for p in sides[name][0]], config.packing) for name in sides},
        {
            name: made_of(name, [(part.key, part.shards, part.chosen) for part in parts], counts, config)
            for name, (parts, counts) in sides.items()
        },
    )


def _packed(
    side: Side,
    sources: Sequence[tuple[str, SourceConfig, TokenSource]],
    chosen: Sequence[Chosen],
    config: DataConfig,
    bos: bool,
) -> list[_Part]:
    """The blocks of each source on a side.

    Raises:
        InputError: A source has less than one.
    """
    parts = []
    for (key, source, shards), documents in zip(sources, chosen, strict=True):
        if documents.tokens < config.sequence_length:
            raise InputError(_too_short(key, source.path, side, documents.tokens, shards.tokens, config))
        packing = pack(shards, documents.runs, config.sequence_length, bos, config.packing)
        parts.append(_Part(key, source, shards, documents, packing))
    return parts


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands in padding, which nothing learns from; every tokenizer has an eos by now."""
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    assert isinstance(found, int)
    return found


def _rows(
    parts: Sequence[_Part], counts: Sequence[int], config: DataConfig, bos: list[int], pad_id: int
) -> PackedBlocks:
    """The blocks of a side in their order."""
    return PackedBlocks(
        [(part.shards, part.packing) for part in parts],
        mixed_order([len(part.packing) for part in parts], counts, config.seed),
        length=config.sequence_length,
        document_mask=config.document_mask,
        bos=bos[0] if bos else None,
        pad_id=pad_id,
    )


def _reports(side: Side, parts: Sequence[_Part], counts: Sequence[int]) -> list[SourceReport]:
    taken = [part.packing.tokens * count / len(part.packing) for part, count in zip(parts, counts, strict=True)]
    return [
        _report(side, part, count, tokens / sum(taken))
        for part, count, tokens in zip(parts, counts, taken, strict=True)
    ]


def _report(side: Side, part: _Part, count: int, share: float) -> SourceReport:
    manifest, found = part.shards.manifest, find_files(part.source.path)
    twice = side == "validation" and part.key.startswith("data.sources")  # it is told under train
    dropped = {} if twice else dict(manifest.dropped)
    return SourceReport(
        path=part.source.path,
        part=side,
        documents=part.chosen.documents,
        tokens=part.chosen.tokens,
        blocks=count,
        packed_blocks=len(part.packing),
        share=share,
        padding=part.packing.padding,
        bos=part.packing.bos,
        equal=part.chosen.equal,
        elsewhere=part.chosen.elsewhere,
        skipped=dropped.pop("malformed", 0),
        blank=dropped.pop("blank", 0),
        left_out=dropped,
        first_skipped=None if twice else manifest.first_error,
        spelt=0 if twice else manifest.spelt,
        other_files=() if twice or found is None else found.others,
        licence=manifest.licence,
    )


def _too_short(key: str, path: str, side: Side, count: int, whole: int, config: DataConfig) -> str:
    other = f", of {whole:,} in all," if count < whole else ""
    lower = max(2, (whole if count < whole else count) // 4)
    return (
        f"{key}.path: `{path}` has {count:,} tokens for {side}{other} but one block needs {config.sequence_length:,}; "
        f"give more text, or lower data.sequence_length to {lower:,} or less"
    )
