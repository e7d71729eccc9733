"""Shards: what is written is what is read, wherever a stretch begins and ends."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from small_shards import small_source

from lowrank_clone.data.shards import TokenSource, open_source
from lowrank_clone.errors import InputError

MASKED = [(1, 3), (4, 5)]


def random_documents(seed: int, count: int = 40, vocab_size: int = 1000) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, rng.integers(1, 12)).tolist() for _ in range(count)]


@pytest.mark.parametrize("shards", [1, 3, 60], ids=["one", "some", "more than documents"])
@pytest.mark.parametrize("vocab_size", [258, 65535, 65536, 2**32])
def test_a_stream_is_all_documents_joined(tmp_path: Path, shards: int, vocab_size: int) -> None:
    documents = [*random_documents(0, vocab_size=vocab_size), [vocab_size - 1]]
    source = small_source(tmp_path, documents, shards=shards, vocab_size=vocab_size)
    stream, ends = np.concatenate(documents), np.cumsum([len(d) for d in documents])
    starts = ends - [len(d) for d in documents]
    assert (source.tokens, source.documents) == (len(stream), len(documents))
    np.testing.assert_array_equal(source.ends(), ends)
    assert source.ends().dtype == np.int64
    rng = np.random.default_rng(1)
    for start, stop in [(0, 0), (0, len(stream)), *np.sort(rng.integers(0, len(stream) + 1, (30, 2))).tolist()]:
        found = source.read(start, stop)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, stream[start:stop])
        np.testing.assert_array_equal(source.document_starts(start, stop), starts[(starts >= start) & (starts < stop)])
        assert not source.masked(start, stop).any()
    size = 2 if vocab_size < 65536 else 4
    assert sum(path.stat().st_size for path in tmp_path.glob("*.ds")) == size * len(stream)


@pytest.mark.parametrize("shards", [1, 4])
def test_masks_lie_where_they_were(tmp_path: Path, shards: int) -> None:
    rng = np.random.default_rng(0)
    documents, masks, spans = random_documents(3), [], []
    for document in documents:
        mask = rng.random(len(document)) < 0.5
        edges = np.flatnonzero(np.diff([0, *mask, 0]))
        masks.append(mask)
        spans.append([tuple(span) for span in edges.reshape(-1, 2).tolist()])
    source = small_source(tmp_path, documents, shards=shards, masked=spans)
    whole = np.concatenate(masks)
    for start, stop in [(0, len(whole)), *np.sort(rng.integers(0, len(whole) + 1, (60, 2))).tolist()]:
        np.testing.assert_array_equal(source.masked(start, stop), whole[start:stop])


def test_hashes_and_pickles(tmp_path: Path) -> None:
    documents = random_documents(0, 5)
    source = small_source(tmp_path, documents, shards=2, hashes=[2**64 - 1, 0, 7, 7, 1])
    assert source.hashes().tolist() == [2**64 - 1, 0, 7, 7, 1]
    source.read(0, 3)
    other: TokenSource = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(other.read(0, other.tokens), np.concatenate(documents))
    assert other.digest == source.digest


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    documents = random_documents(0, 150)
    source = small_source(tmp_path, documents, shards=150)
    for _ in range(2):
        np.testing.assert_array_equal(source.read(0, source.tokens), np.concatenate(documents))
    assert len(source._handles) == 64


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    documents, spans = random_documents(0, 4), [[], [], [], []]
    same = small_source(tmp_path / "a", documents, hashes=[1, 2, 3, 4]).digest
    assert small_source(tmp_path / "b", documents, hashes=[1, 2, 3, 4]).digest == same
    assert small_source(tmp_path / "c", documents[::-1], hashes=[1, 2, 3, 4]).digest != same
    joined = [documents[0] + documents[1], *documents[2:]]
    assert small_source(tmp_path / "d", joined, hashes=[1, 2, 3]).digest != same
    assert small_source(tmp_path / "e", documents, hashes=[1, 2, 3, 4], masked=spans).digest != same


@pytest.mark.parametrize("file", ["00001.ds", "00001.ds.index", "00001.ds.hash", "00001.ds.masked"])
def test_damaged_shards_are_refused(tmp_path: Path, file: str) -> None:
    documents = random_documents(0, 10)
    source = small_source(tmp_path, documents, shards=2, masked=[[(0, 1)]] * 10)
    path = tmp_path / file
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(InputError, match=rf"{file} was altered: .*make it again with `lrc data RECIPE`"):
        open_source(tmp_path)
    (tmp_path / "00001.json").touch()  # as if it had been altered before the record was written, or by a disk
    open_source(tmp_path)
    with pytest.raises(InputError, match=rf"{file} was altered: "):
        open_source(tmp_path, verify=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{file} has {len(whole) - 1} bytes, expected {len(whole)}; "):
        open_source(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{file} is missing; "):
        open_source(tmp_path)
    assert source.tokens == sum(map(len, documents))


def test_a_shard_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    source = small_source(tmp_path, random_documents(0, 10))
    with open(tmp_path / "00000.ds", "r+b") as file:
        file.truncate(4)
    with pytest.raises(InputError, match=r"00000.ds was truncated: it has 4 bytes, expected more; remove it"):
        source.read(0, source.tokens)


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, "no complete shards in .*: manifest.json, which is written last, is missing"),
        ('{"format": 99}', "has format 99, expected 1; another version wrote it"),
        ("[]", "is damaged"),
        ('{"form', "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"format": 1, "token_bytes": 2}', "is damaged"),
    ],
)
def test_no_or_another_manifest(tmp_path: Path, text: str | None, expected: str) -> None:
    small_source(tmp_path, [[1]])
    manifest = tmp_path / "manifest.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(InputError, match=expected):
        open_source(tmp_path)
