"""Parts of files, read one after the other, against the whole file read naively."""

import gzip
import json
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_clone.data.config import SourceConfig
from lowrank_clone.data.readers import text_files
from lowrank_clone.data.readers.documents import Document, Part, Piece
from lowrank_clone.data.readers.parts import split_source
from lowrank_clone.data.readers.reading import read_documents


def read(source: SourceConfig, bytes_per_part: int = 2**26, strict: bool = False) -> list[Document]:
    parts = pickle.loads(pickle.dumps(split_source(source, bytes_per_part)))
    return [document for part in parts for document in read_documents(part, source, strict)]


def texts_of(source: SourceConfig, bytes_per_part: int = 2**26) -> list[str]:
    documents = read(source, bytes_per_part)
    assert not [document for document in documents if document.error or document.dropped]
    return [document.text for document in documents]


# --- parts ------------------------------------------------------------------------------------------------------------

LETTERS = "abc é漢🙂\n\n\n  "


def random_text(rng: random.Random, length: int) -> str:
    """Random letters of one to four bytes, with stretches that have no place to cut."""
    marks = rng.choice([LETTERS, "ab\n", "ab ", "🙂漢é", "a"])
    return "".join(rng.choice(marks) for _ in range(length))


@pytest.mark.parametrize("seed", range(30))
def test_parts_of_a_text_are_the_whole_once(folder: Path, monkeypatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(text_files, "CHUNK", 16)
    monkeypatch.setattr("lowrank_clone.data.readers.parts.CHUNK", 16)
    text = "x" + "".join(random_text(rng, rng.randrange(60)) for _ in range(rng.randrange(1, 12)))
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "b.md.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "c.txt.zst").write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))
    whole = [d for d in read(SourceConfig(path=str(folder / "a.txt")), 10**9)]
    for bytes_per_part in (1, 16, 17, 40, 100, rng.randrange(1, 300)):
        source = SourceConfig(path=str(folder / "a.txt"))
        parts = split_source(source, bytes_per_part)
        assert sum(part.size for part in parts) == len(text.encode())
        assert read(source, bytes_per_part) == whole
    for packed in ("b.md.gz", "c.txt.zst"):
        documents = read(SourceConfig(path=str(folder / packed)))
        assert [d._replace(place=None) for d in documents] == [d._replace(place=None) for d in whole]
    spoken = "".join(d.text for d in whole if d.text is not None)
    assert "".join(spoken.split()) == "".join(text.split())  # blank documents are left out, and nothing else
    assert all(len((d.text or "").encode()) <= 16 + 8 for d in whole)


@pytest.mark.parametrize("mark", ["\n\n", "\r\n\r\n", "\n", " ", ""])
def test_long_text_is_cut_at_the_best_border(folder: Path, mark: str) -> None:
    paragraphs = [f"{i} " + "abcdefg" * (1 + i % 900) for i in range(200)]
    paragraphs = [paragraph.replace(" ", "_") for paragraph in paragraphs]
    (folder / "a.txt").write_bytes(mark.join(paragraphs).encode())
    documents = texts_of(SourceConfig(path=str(folder / "a.txt")), 1)
    expected = mark.replace("\r\n", "\n")
    assert "".join(documents) == expected.join(paragraphs)
    assert len(documents) == -(-len(mark.join(paragraphs)) // text_files.CHUNK)
    assert all(document.endswith(expected) for document in documents[:-1])
    assert all(len(document.encode()) <= 1.5 * text_files.CHUNK for document in documents)


def random_line(rng: random.Random, i: int) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice([b"", b"   ", b"\t\r"])
    if kind == 1:
        return rng.choice([b"no json", b'{"text": 5}', b'{"text": "caf\xe9"}', b"[1]", b'{"other": "x"}'])
    text = f"{i} " + random_text(rng, rng.randrange(50))
    return json.dumps({"text": text}, ensure_ascii=rng.random() < 0.5).encode()


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_parts_of_lines_are_the_whole_once(folder: Path, seed: int, ending: str) -> None:
    """Values, errors and the numbers of lines are those of a naive loop, whatever the size of the parts."""
    rng = random.Random(seed)
    lines = [random_line(rng, i) for i in range(rng.randrange(1, 60))]
    lines[0] = b'{"text": "first"}'  # its first character tells lines from an array
    last = b"" if rng.random() < 0.5 else b"\n"
    path = folder / f"a{ending}"
    path.write_bytes((b"\xef\xbb\xbf" if seed % 2 else b"") + b"\n".join(lines) + last)
    source = SourceConfig(path=str(path))
    good, bad = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
            assert isinstance(row, dict) and isinstance(row["text"], str)
            good.append((number, row["text"]))
        except (ValueError, AssertionError, KeyError):
            bad += [number] if line.strip() else []
    for bytes_per_part in (1, 7, 64, rng.randrange(1, 500), 10**9):
        documents = read(source, bytes_per_part)
        assert [d.text for d in documents if d.text] == [text for _, text in good]
        assert [str(d.place) for d in documents if d.text] == [f"{path} line {number}" for number, _ in good]
        errors = [d.error for d in documents if d.error]
        assert len(errors) == len(bad)
        assert all(f"{path} line {number}: " in error for number, error in zip(bad, errors, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_parts_of_tables_are_the_whole_once(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = [f"{i} " + "word " * rng.randrange(200) for i in range(rng.randrange(1, 400))]
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rng.randrange(1, 100))
    source = SourceConfig(path=str(path))
    for bytes_per_part in (1, 1000, rng.randrange(1, 20000), 10**9):
        documents = read(source, bytes_per_part)
        assert [d.text for d in documents] == texts
        assert [str(d.place) for d in documents] == [f"{path} row {i}" for i in range(len(texts))]
    assert len(split_source(source, 1)) == pq.ParquetFile(path).num_row_groups


def test_small_files_are_put_together_and_a_growing_file_keeps_its_parts(folder: Path) -> None:
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"text {i} ".ljust(100, "x"))
    source = SourceConfig(path=str(folder))
    parts = split_source(source, 1000)
    assert [len(part.files) for part in parts] == [10, 10, 10] and [part.size for part in parts] == [1000] * 3
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(300)))
    before = split_source(SourceConfig(path=str(lines)), 1000)
    with open(lines, "a") as file:
        file.write('{"text": "more"}\n' * 100)
    after = split_source(SourceConfig(path=str(lines)), 1000)
    assert len(after) > len(before) > 2 and after[: len(before) - 1] == before[:-1]


def test_a_limit_of_documents_makes_one_part_that_ends_there(folder: Path) -> None:
    for name in "ab":
        rows = [{"text": text} for text in ("", f"{name}1", f"{name}2", f"{name}3")]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = SourceConfig(path=str(folder), max_documents=4)
    (part,) = split_source(source, 1)
    assert [d.text for d in read_documents(part, source, True) if d.text] == ["a1", "a2", "a3", "b1"]


def test_nothing_is_read_after_the_first_bad_row(folder: Path) -> None:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": ["text", None, "text", None]}), path)
    part = Part((Piece(str(path)), Piece(str(path))), 0)
    source = SourceConfig(path=str(path))
    strict, lenient = ([bool(d.error) for d in read_documents(part, source, s)] for s in (True, False))
    assert (strict, lenient) == ([False, True], [False, True, False, True] * 2)
