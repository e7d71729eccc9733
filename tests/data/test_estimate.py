"""Estimates against what `prepare` counts afterwards; hold-out by tokens; files that are found and left out."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data import estimate
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.estimate import estimate_text
from lowrank_clone.data.prepare import hold_out, prepare
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


# --- the hold-out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_one_of_tokens(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(0, 500, 1000)
    held = hold_out(lengths, 0.1, 256, [seed])
    share = lengths[held].sum() / lengths.sum()
    assert 0.1 <= share <= 0.126
    assert not (held & (lengths == 0)).any()


@pytest.mark.parametrize("seed", range(5))
def test_long_documents_fill_at_least_a_block(seed: int) -> None:
    """Forty-two plays, one per cent of which is less than any: one of the shorter ones is held out, not the longest."""
    lengths = np.random.default_rng(1).integers(20_000, 60_000, 42)
    held = hold_out(lengths, 0.01, 2048, [seed])
    assert held.sum() == 1 and lengths[held].sum() <= np.median(lengths)
    assert hold_out(np.full(42, 300), 0.01, 2048, [seed]).sum() == 7  # 7 x 300 tokens are the first to fill a block


@pytest.mark.parametrize("lengths", [[5, 5], [1000, 3], [0, 7, 0, 7], [3, 1000, 1000]])
def test_both_sides_get_a_document(lengths: list[int]) -> None:
    for seed in range(5):
        held = hold_out(np.array(lengths), 0.5, 2, [seed])
        filled = np.array(lengths) > 0
        assert held.any() and (filled & ~held).any() and not (held & ~filled).any()
