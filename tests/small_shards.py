"""Small sources of tokens, written by the real writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowrank_clone.data.sharding.records import Manifest, ShardRecord
from lowrank_clone.data.sharding.writer import ShardWriter
from lowrank_clone.data.shards import TokenSource, open_source


def small_source(
    folder: Path,
    documents: Sequence[Sequence[int]],
    *,
    shards: int = 1,
    hashes: Sequence[int] | None = None,
    masked: Sequence[Sequence[tuple[int, int]]] | None = None,
    vocab_size: int = 1000,
) -> TokenSource:
    """The ids of `documents`, in `shards` shards of about as many each; hashes are of the ids unless given.

    Args:
        masked: For each document the stretches that are left out of the LM loss.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token_bytes = 2 if vocab_size < 65536 else 4
    records = []
    for shard, members in enumerate(np.array_split(np.arange(len(documents)), shards)):
        writer = ShardWriter(folder, f"{shard:05d}", token_bytes, masks=masked is not None)
        for i in members.tolist():
            content = hash(tuple(documents[i])) % 2**64 if hashes is None else hashes[i]
            spans = None if masked is None else np.array(masked[i], np.int64).reshape(-1, 2)
            writer.write(np.array(documents[i]), content, spans)
        records.append(writer.finish(ShardRecord(f"{shard:05d}", "", 0, 0, {})))
    Manifest(token_bytes, vocab_size, "tokenizer", None, {}, tuple(records)).write(folder)
    return open_source(folder)
