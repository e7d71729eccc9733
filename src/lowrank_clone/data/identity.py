"""What a side of the data is made of, so that a run that goes on can tell what is other than it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from .blocks import PackedBlocks
from .config import DataConfig
from .report import Side
from .shards import TokenSource
from .view import Chosen

_PER_SOURCE = ("path", "name", "split", "revision", "max_documents")


def made_of(
    side: Side,
    sources: Sequence[tuple[str, TokenSource, Chosen]],
    counts: Sequence[int],
    config: DataConfig,
) -> dict[str, str]:
    """What decides the blocks of a side and their order, by names that a user knows.

    Args:
        sources: Key, shards and documents of this side.
        counts: Blocks of each in one pass.
    """
    found: dict[str, str] = {}
    for (key, source, chosen), count in zip(sources, counts, strict=True):
        manifest = source.manifest
        found[f"tokenizer ({key})"] = manifest.tokenizer
        if manifest.template is not None:
            found[f"chat template ({key})"] = manifest.template
        found[f"text ({key})"] = source.digest
        found[f"how it is read ({key})"] = _brief({k: v for k, v in manifest.source.items() if k not in _PER_SOURCE})
        found[f"documents of this side ({key})"] = _digest(chosen.runs)
        found[f"blocks in one pass ({key})"] = f"{count:,}"
    options = asdict(config)
    names = ["sequence_length", "packing", "document_mask", "seed", "deduplicate"]
    found |= {f"data.{name}": str(options[name]) for name in names}
    if side == "train":
        weights = [s.weight if s.tokens is None else f"{s.tokens} tokens" for s in config.sources]
        found["weights and budgets"] = json.dumps(weights)
    return found


def digest_of(blocks: PackedBlocks, sources: Sequence[tuple[TokenSource, Chosen]], packing: str) -> str:
    """sha256 of all rows in their order by what they are made of: equal for equal rows, and no row is read for it."""
    decides = [blocks.length, packing, blocks.document_mask, blocks.bos, blocks.pad_id]
    decides += [[source.digest, _digest(chosen.runs)] for source, chosen in sources]
    return hashlib.sha256(json.dumps([*decides, _digest(blocks.order)]).encode()).hexdigest()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs, each with both values where people can read them."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        readable = all(value is not None and len(value) < 16 for value in (before, now))
        found.append(f"{key} (was {before}, is {now})" if readable else key)
    return found


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _brief(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
