"""`lrc data stats`: what a recipe's text is like, and how well the teacher knows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..data.prepare import Blocks, prepare
from ..data.stats import QUANTILES, SourceStats, source_stats
from ..objective.evaluate import LanguageLoss, language_loss, rows_per_batch
from ..plan.decoder import decoder_config
from ..recipe.schema import Recipe
from .build_clone import device_of
from .forecast import run_tokens
from .job import make_arguments, max_length
from .resolve import resolve_dtype
from .teachers import load_config, load_teacher, load_tokenizer

Stats = list[tuple[SourceStats, LanguageLoss | None]]


def measure_stats(recipe: Recipe, tokens: int, said: Callable[[str], None]) -> tuple[Blocks, Stats]:
    """The blocks of a recipe, and of each source for training what it is like; shards that are missing are made.

    Args:
        tokens: Of each source, on which the teacher's loss is measured; 0 leaves its weights unread.
        said: Is told what is begun.

    Raises:
        InputError: As a run of the recipe would.
    """
    config = decoder_config(load_config(recipe.teacher))
    blocks = prepare(
        recipe.data,
        load_tokenizer(recipe.teacher),
        max_length=max_length(config),
        vocab_size=config.vocab_size,
        run_tokens=run_tokens(recipe, make_arguments(recipe)),
        progress=True,
    )
    stats = source_stats(blocks, recipe.data)
    if tokens == 0:
        return blocks, [(one, None) for one in stats]
    said("reading the teacher, whose loss is measured on a part of every source")
    device = device_of(recipe)
    teacher = load_teacher(recipe.teacher, resolve_dtype(recipe.teacher.dtype, device), device)
    length = recipe.data.sequence_length
    found: Stats = []
    for one in stats:
        rows = one.rows.select(range(min(len(one.rows), -(-tokens // length))))
        found.append((one, language_loss(teacher, rows, rows_per_batch(length))))
    return blocks, found


def rows_of(stats: Stats) -> tuple[list[str], list[list[str]]]:
    """A table of sources: the names of its columns, and its cells."""
    columns = ["source", "documents", "tokens", "share", "asked", "passes", "full", "length 10 / 50 / 90 %", "longest"]
    rows = []
    for one, _ in stats:
        train = one.train
        rows.append(
            [
                f"{one.key} {train.path}",
                f"{one.lengths.documents:,}",
                f"{train.tokens + (one.validation.tokens if one.validation else 0):,}",
                f"{train.share:.2%}",
                "" if one.asked is None else f"{one.asked:.2%}",
                f"{train.blocks / train.packed_blocks:.3g}",
                f"{one.full:.2%}",
                " / ".join(f"{value:,.0f}" for value in one.lengths.quantiles),
                f"{one.lengths.longest:,}",
            ]
        )
    if any(loss is not None for _, loss in stats):
        columns.append("teacher's loss")
        for row, (_, loss) in zip(rows, stats, strict=True):
            row.append("" if loss is None else f"{loss.loss:.3f}")
    return columns, rows


def as_json(blocks: Blocks, stats: Stats) -> str:
    """Everything of the table and the figure, for other programs; lengths in tokens, losses in nats per token."""
    return json.dumps(
        {
            "sequence_length": blocks.report.sequence_length,
            "remarks": list(blocks.report.remarks),
            "sources": [_as_tree(one, loss) for one, loss in stats],
        },
        indent=1,
    )


def _as_tree(one: SourceStats, loss: LanguageLoss | None) -> dict[str, Any]:
    return {
        "key": one.key,
        "train": asdict(one.train),
        "validation": None if one.validation is None else asdict(one.validation),
        "share": one.train.share,
        "asked": one.asked,
        "full": one.full,
        "lengths": asdict(one.lengths)
        | {"quantiles": dict(zip(map(str, QUANTILES), one.lengths.quantiles, strict=True))},
        "teacher": None if loss is None else asdict(loss),
    }


def names_of(stats: Sequence[tuple[SourceStats, LanguageLoss | None]]) -> list[str]:
    """What a figure calls each source."""
    paths = [one.train.path for one, _ in stats]
    return [
        path if paths.count(path) == 1 else f"{path} ({one.key})" for path, (one, _) in zip(paths, stats, strict=True)
    ]
