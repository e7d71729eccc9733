"""Documents that are nearly equal, found by datatrove's MinHash (n-grams of words, 14 buckets of 8 hashes)."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from .shards import TokenSource

_FORMAT = 1


def first_of_near(
    shards: Sequence[TokenSource], tokenizer: PreTrainedTokenizerBase, progress: bool
) -> dict[int, np.ndarray]:
    """By source, `[documents]` uint64: each document's hash, or that of the first one that is nearly equal to it.

    Two documents whose sets of 5 words in a row overlap by 0.8 (Jaccard) are found with a probability of 0.92, by 0.7
    of 0.56, by 0.5 of 0.05; what is nearly equal to the same document counts as equal. Documents of fewer words are
    compared by their hashes alone. The answer is kept beside the shards, 8 bytes a document.

    Args:
        progress: Whether to say on stderr that the texts are gone through.
    """
    digest = hashlib.sha256(repr([_FORMAT, *(source.digest for source in shards)]).encode()).hexdigest()[:16]
    file = shards[0].folder.parent / f"near-{digest}.npz"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            if progress:
                count = sum(source.documents for source in shards)
                print(f"data.deduplicate: looking for nearly equal documents among {count:,}", file=sys.stderr)
            found = _find(shards, tokenizer)
            draft = file.with_suffix(f".{os.getpid()}.part")
            with draft.open("wb") as output:
                np.savez(output, allow_pickle=False, **{str(index): one for index, one in found.items()})
            os.replace(draft, file)
    with np.load(file, allow_pickle=False) as stored:
        return {index: stored[str(index)] for index in range(len(shards))}


def _find(shards: Sequence[TokenSource], tokenizer: PreTrainedTokenizerBase) -> dict[int, np.ndarray]:
    # Imported here: datatrove takes a second.
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    class Words(WordTokenizer):
        """Words as they stand between spaces, which the text has been simplified to before."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    def documents(source: TokenSource) -> Iterator[Document]:
        start = 0
        for place, stop in enumerate(source.ends().tolist()):
            yield Document(text=str(tokenizer.decode(source.read(start, stop).tolist())), id=str(place))
            start = stop

    logger.disable("datatrove")
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            places = [str(Path(folder, name)) for name in ("signatures", "buckets", "clusters")]
            config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash takes no text any more
            for rank, source in enumerate(shards):
                MinhashDedupSignature(places[0], config, language=Words()).run(documents(source), rank, len(shards))
            for bucket in range(config.num_buckets):
                step = MinhashDedupBuckets(places[0], places[1], config=config)
                step.run(None, bucket, config.num_buckets)
            MinhashDedupCluster(places[1], places[2], config, save_cluster_id=True).run(None, 0, 1)
            clusters = {i: _clusters(Path(places[2], f"{i:06d}.clusters")) for i in range(len(shards))}
    finally:
        logger.enable("datatrove")
    found, first = {}, dict[int, np.uint64]()
    for index, source in enumerate(shards):
        hashes = source.hashes()
        for place, cluster in clusters[index].tolist():
            hashes[place] = first.setdefault(cluster, hashes[place])
        found[index] = hashes
    return found


def _clusters(file: Path) -> np.ndarray:
    """`[documents, 2]` uint32: places of documents that are nearly equal to others, and of which cluster each is."""
    return (np.fromfile(file, "<u4") if file.exists() else np.empty(0, "<u4")).reshape(-1, 2)
