"""Nearly equal documents count as one, across sources."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.prepare import Blocks, prepare


def words(seed: int, count: int = 120) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefgh", k=5)) for _ in range(count)]  # digits count as equal


def write(path: Path, texts: list[list[str]]) -> str:
    path.write_text("".join(json.dumps({"text": " ".join(text)}) + "\n" for text in texts))
    return str(path)


def run(sources: list[str], deduplicate: object) -> Blocks:
    config = DataConfig(sources=sources, sequence_length=64, validation=0.1, deduplicate=deduplicate)
    return prepare(config, tiny_tokenizer(), max_length=None, vocab_size=258)


def test_nearly_equal_documents_stay_once(folder: Path) -> None:
    first, second = [words(i) for i in range(30)], [words(100 + i) for i in range(30)]
    near = list(first[7])
    near[60] = "another"  # of 116 runs of five words, 5 are others: an overlap of 0.92
    far = [*first[8][:40], *words(999, 80)]
    sources = [write(folder / "a.jsonl", first), write(folder / "b.jsonl", [*second, near, far, first[3]])]

    def documents(deduplicate: object) -> tuple[int, int]:
        parts = run(sources, deduplicate).report.sources
        return sum(part.documents for part in parts), sum(part.equal for part in parts)

    assert documents(False) == (63, 0)
    assert documents(True) == (62, 1)
    assert documents("minhash") == documents("minhash") == (61, 2)  # the second time from beside the shards
