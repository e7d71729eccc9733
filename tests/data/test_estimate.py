"""Estimates against what `prepare` counts afterwards; hold-out by tokens; files that are found and left out."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data import estimate
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.estimate import estimate_text
from lowrank_clone.data.prepare import prepare
from lowrank_clone.errors import InputError


def write(folder: Path, kind: str, count: int = 60) -> None:
    """Documents of 50 to 350 characters."""
    texts = [f"{i} " + "word " * (10 + 37 * i % 60) for i in range(count)]
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    if kind == "txt":
        for i, text in enumerate(texts):
            (folder / f"{i}.txt").write_text(text)
    elif kind == "jsonl":
        (folder / "a.jsonl").write_text(lines)
    elif kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet")
    else:
        (folder / "a.txt").write_text("\n\n".join(texts * 20))


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet", "one long text"])
@pytest.mark.parametrize("sampled", [False, True])
def test_estimates_meet_what_is_there(folder: Path, monkeypatch, kind: str, sampled: bool) -> None:
    write(folder, kind)
    if sampled:
        for name, value in (("_WHOLE", 0), ("_FILES", 12), ("_ROWS", 30), ("_BYTES", 6000)):
            monkeypatch.setattr(estimate, name, value)
    config = DataConfig(sources=str(folder), sequence_length=64, validation=0.1)
    found = estimate_text(config, tiny_tokenizer())
    blocks = prepare(config, tiny_tokenizer(), max_length=None, vocab_size=258)
    documents = sum(part.documents for part in blocks.report.sources)
    tokens = sum(part.tokens for part in blocks.report.sources)
    (source,) = found.sources
    assert source.exact == found.exact == (not sampled and kind != "parquet")
    if found.exact:
        assert (source.documents, source.tokens) == (documents, tokens)
    if kind != "one long text":
        assert source.documents == pytest.approx(documents, rel=0.3)
    assert source.tokens == pytest.approx(tokens, rel=0.3)
    assert found.train_blocks == pytest.approx(len(blocks.train), rel=0.3)
    assert found.validation_blocks == pytest.approx(len(blocks.validation), rel=0.35, abs=2)


def test_a_limit_of_documents_limits_the_estimate(folder: Path, monkeypatch) -> None:
    write(folder, "jsonl", 200)
    monkeypatch.setattr(estimate, "_WHOLE", 0)
    config = DataConfig(sources=[{"path": str(folder), "max_documents": 20}], sequence_length=16)
    (source,) = estimate_text(config, tiny_tokenizer()).sources
    assert source.documents == 20 and 1500 < source.tokens < 5000


def test_a_small_text_is_read_to_its_last_row(folder: Path) -> None:
    write(folder, "jsonl")
    with open(folder / "a.jsonl", "a") as file:
        file.write("no json")
    config = DataConfig(sources=str(folder), sequence_length=16)
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: .*a\.jsonl line 61: malformed JSON"):
        estimate_text(config, tiny_tokenizer())
