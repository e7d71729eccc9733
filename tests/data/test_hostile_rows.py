"""Rows and files that are damaged, huge or hostile: one line each, and nothing hangs."""

import datetime
import gzip
import json
import os
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_clone.data.check import check_sources
from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.readers import json_files, reading, text_files
from lowrank_clone.data.readers.documents import Document
from lowrank_clone.data.readers.parts import split_source
from lowrank_clone.data.readers.reading import read_documents
from lowrank_clone.errors import InputError

DEEP = b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
DIGITS = b'{"text": "a", "n": ' + b"9" * 5000 + b"}"
BAD = [
    (DEEP, "JSON that can't be read (RecursionError"),
    (DIGITS, "JSON that can't be read (ValueError: Exceeds the limit"),
    (b'{"text": "caf\xe9"}', "not UTF-8 ("),
    (b'{"text": "a\\u0000b"}', "a NUL character stands at 1; expected text"),
    (b'{"text": "\\ud800"}', "surrogates not allowed"),
    (b'{"text": 5}', "the text is of type int; expected a string"),
    (b'{"text": null}', "the text is of type NoneType; expected a string"),
    (b'{"text": ["a"]}', "the text is of type list; expected a string"),
    (b'{"body": "a", "meta": {"x": 1, "y": 2}}', "no column `text`; expected one of the columns body, meta.x, meta.y"),
    (b"{}", "no column `text`; it has none"),
    (b'"text"', "got a JSON str; expected one object "),
    (b"[1, 2]", "got a JSON list; expected one object "),
    (b'{"text" "a"}', "malformed JSON (Expecting ':' delimiter, column 9); expected one object "),
    (b"{'text': 'a'}", "malformed JSON ("),
]


def read(path: Path, *, strict: bool = False, **fields: object) -> list[Document]:
    source = SourceConfig(path=str(path), **fields)
    return [document for part in split_source(source) for document in read_documents(part, source, strict)]


def write(folder: Path, kind: str, rows: list[bytes]) -> Path:
    path = folder / f"a.{kind}"
    content = b"[" + b",\n".join(rows) + b"]\n" if kind.startswith("json.") or kind == "json" else b"\n".join(rows)
    if kind.endswith(".gz"):
        content = gzip.compress(content)
    elif kind.endswith(".zst"):
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("row", "message"), BAD)
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.zst", "json.gz"])
def test_a_bad_row_is_told_and_spoils_no_other(folder: Path, kind: str, row: bytes, message: str) -> None:
    good = [json.dumps({"text": f"row {i}" + ' "]},[{ \\\\'}).encode() for i in range(20)]
    path = write(folder, kind, [*good[:9], row, *good[9:]])
    documents = read(path)
    unit = "object" if "json." in kind or kind == "json" else "line"
    assert [d.text for d in documents if d.text] == [json.loads(line)["text"] for line in good]
    (bad,) = [d.error for d in documents if d.error]
    assert f": {path} {unit} 10: " in bad and message in bad and "set on_error: skip" in bad
    assert read(path, strict=True)[-1].error == bad and len(read(path, strict=True)) == 10


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_row_that_is_too_long_is_passed_over(folder: Path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    monkeypatch.setattr(json_files, "_CHUNK", 64)
    row = '{"text": "%s"}'
    path = write(folder, kind, [(row % word).encode() for word in ("one", 'x\\"' * 2000, "two", "y" * 900, "z" * 3000)])
    documents = read(path)
    assert [d.text for d in documents] == ["one", None, "two", "y" * 900, None]
    assert "of more than 1,000 bytes; expected a document that fits into memory" in documents[1].error


def test_a_text_that_no_tokenizer_has_memory_for_is_a_bad_row(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 100)
    path = table(folder, text=["a" * 100, "b" * 101, "c"])
    assert [d.text for d in read(path)] == ["a" * 100, None, "c"]
    assert "the text has 101 characters; expected at most 100, or several documents" in read(path)[1].error


ARRAYS = [
    (b"[]", 0, 0, None),
    (b" [ \n ] \n", 0, 0, None),
    (b'[{"text": "a"}]', 1, 0, None),
    (b'\xef\xbb\xbf\n[{"text": "a"} , {"text": "b"}]', 2, 0, None),
    (b'[{"text": "a"},]', 1, 1, None),
    (b'[{"text": "a"},,{"text": "b"}]', 2, 1, None),
    (b'[{"text": "a"}', 0, 0, "the array has no end"),
    (b'[{"text": "a"}, {"text": "b', 1, 0, "the array has no end"),
    (b'[{"text": "a"}] [{"text": "b"}]', 1, 0, "something stands behind the array"),
    (b'[{"text": "a"}]x', 1, 0, "something stands behind the array"),
    (b"[", 0, 0, "the array has no end"),
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 2**20])
@pytest.mark.parametrize(("content", "good", "bad", "end"), ARRAYS)
def test_arrays(folder: Path, monkeypatch, content: bytes, good: int, bad: int, end: str | None, chunk: int) -> None:
    (folder / "a.json").write_bytes(content)
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    documents = read(folder / "a.json")
    assert [d.text for d in documents if d.text] == ["a", "b"][:good]
    assert sum(bool(d.error) and not d.fatal for d in documents) == bad
    assert (documents[-1].fatal and end in documents[-1].error) if end else not any(d.fatal for d in documents)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "txt.gz", "txt.zst", "md.zst", "json.zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_packed_files_that_break_off(folder: Path, kind: str, kept: float) -> None:
    path = write(folder, kind, [json.dumps({"text": os.urandom(40).hex()}).encode() for _ in range(200)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    last = read(path)[-1]
    assert last.fatal and last.error.startswith(f"path: {path}: cannot be read (") and "intact file" in last.error


@pytest.mark.parametrize("kind", ["txt.gz", "jsonl.zst", "parquet", "json.gz"])
def test_packed_files_of_something_else(folder: Path, kind: str) -> None:
    (folder / f"a.{kind}").write_bytes(b"neither packed nor a table" * 9)
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: .*: cannot be read \("):
        check_sources(DataConfig(sources=str(folder)))


def test_a_table_that_is_damaged_inside(folder: Path) -> None:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": [os.urandom(40).hex() for _ in range(2000)]}), path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[1000:40000] = bytes(39000)
    path.write_bytes(content)
    last = read(path)[-1]
    assert last.fatal and "cannot be read (OSError" in last.error


# --- columns and filters ----------------------------------------------------------------------------------------------


def table(folder: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def error_of(path: Path, on_error: str = "raise", **fields: object) -> str:
    with pytest.raises(InputError) as caught:
        check_sources(DataConfig(sources=[{"path": str(path), **fields}], on_error=on_error))
    message = str(caught.value)
    assert message.startswith("data.sources.0.") and message.isprintable()
    return message.removeprefix("data.sources.0.")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_column": "body"}, "no column `body`; expected one of the columns text, meta.x, n"),
        ({"text_column": "meta.y"}, "no column `meta.y`; expected one of the columns text, meta.x, n"),
        ({"text_column": "text.x"}, "no column `text.x`"),
        ({"chat_column": "talk"}, "no column `talk`"),
        ({"filter": {"int_score": {"min": 4}}}, "no column `int_score`; expected one of the columns text, meta.x, n"),
        ({"filter": {"meta.z": {"min": 4}}}, "no column `meta.z`"),
        ({"filter": {"n": {"equals": "3"}}}, "column `n`: the value is '3' (int); equals compares text"),
        ({"filter": {"meta": {"min": 3}}}, "column `meta`: the value is \"{'x': 3}\" (dict); min compares a number"),
    ],
)
def test_columns_that_are_not_there(folder: Path, kind: str, on_error: str, fields: dict, message: str) -> None:
    rows = [{"text": f"row {i}", "meta": {"x": 3}, "n": 3} for i in range(20)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    else:
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = error_of(folder, on_error, **fields)
    assert got.startswith(f"{next(iter(fields))}: {folder}/a.{kind}") and message in got


def test_one_table_without_the_column_ends_the_reading_even_where_rows_are_skipped(folder: Path) -> None:
    table(folder, text=["a", "b"])
    pq.write_table(pa.table({"body": ["c"] * 9}), folder / "b.parquet")
    last = read(folder)[-1]
    assert last.fatal and f"text_column: {folder}/b.parquet: no column `text`; expected one of" in last.error


def test_a_file_of_bad_rows_alone(folder: Path) -> None:
    """A few may be skipped where others are good; many mean that the column, or the file, is wrong."""
    (folder / "a.txt").write_bytes(b"caf\xe9")
    assert "a.txt: not UTF-8" in error_of(folder, "skip")
    (folder / "b.txt").write_text("good")
    (folder / "c.txt").write_text("good")
    check_sources(DataConfig(sources=str(folder), on_error="skip"))
    (folder / "d.jsonl").write_text('{"body": "a"}\n' * 20)
    assert "d.jsonl line 1: no column `text`" in error_of(folder, "skip")
    assert "; and so are all of its first 8 rows" in error_of(folder, "skip")


def test_filters_keep_what_they_say(folder: Path) -> None:
    scores = [5, 3, None, 4, 2]
    rows = [{"text": f"row {i}", "meta": {"score": score}, "a.b": i} for i, score in enumerate(scores)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        documents = read(folder / name, filter={"meta.score": {"min": 4}, "a.b": {"max": 2}})
        assert [d.text for d in documents] == ["row 0", None, None, None, None]
        reasons = ["filter meta.score", "filter meta.score", "filter a.b", "filter meta.score"]
        assert [d.dropped for d in documents] == [None, *reasons]
        assert [d.text for d in read(folder / name, text_column="text")] == [row["text"] for row in rows]
    assert "holds no text" in error_of(folder, filter={"meta.score": {"min": 9}})
    assert "10 rows left out: filter meta.score" in error_of(folder, filter={"meta.score": {"min": 9}})


def test_a_null_parent_has_null_columns(folder: Path) -> None:
    rows = [{"doc": {"text": "a"}}, {"doc": None}, {"doc": {"text": "b"}}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        documents = read(folder / name, text_column="doc.text")
        assert [d.text for d in documents] == ["a", None, "b"] and "of type NoneType" in documents[1].error


def test_plain_text_has_no_columns(folder: Path) -> None:
    (folder / "a.txt").write_text("some text")
    assert error_of(folder, filter={"a": {"min": 1}}).startswith(f"filter: {folder}/a.txt: plain text has no columns")
    assert error_of(folder, chat_column="talk").startswith(f"chat_column: {folder}/a.txt: plain text has no columns")


def test_options_of_the_hub_for_a_file(folder: Path) -> None:
    (folder / "a.txt").write_text("some text")
    for field in ("name", "split", "revision"):
        message = error_of(folder, **{field: "x"})
        assert message.startswith(f"{field}: ") and "is local; remove them" in message


def test_a_file_in_two_sources_needs_other_rows_or_columns(folder: Path) -> None:
    rows = [{"text": f"text {i}", "body": f"body {i}", "n": i} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    path = str(folder / "a.parquet")
    os.link(path, folder / "b.parquet")

    def check(**second: object) -> None:
        check_sources(DataConfig(sources=[{"path": path}, {"path": path, **second}]))

    check(text_column="body")
    check(filter={"n": {"min": 3}})
    for second in ({}, {"weight": 2.0}, {"path": str(folder / "b.parquet")}):
        with pytest.raises(InputError, match=r"data\.sources\.1\.path: .* is already part of data\.sources\.0"):
            check(**second)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_documents_of_no_length_are_counted_and_left_out(folder: Path) -> None:
    texts = ["", "a", " ", "\n\u00a0\t", "b", ""]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    table(folder, text=texts)
    (folder / "c.txt").write_text("")
    (folder / "d.txt").write_text(" \n")
    (folder / "e.json").write_text("")
    documents = read(folder)
    assert [d.text for d in documents if d.text] == ["a", "b"] * 2
    assert sum(d.dropped == "blank" for d in documents) == 9


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "txt"])
def test_one_document_of_50_megabytes(folder: Path, kind: str) -> None:
    text = "0123456789 abcdefgh" * 137 + "é\n"
    text *= 50 * 2**20 // len(text.encode())
    path = folder / f"a.{kind}"
    if kind == "parquet":
        path = table(folder, text=[text, "short"])
    elif kind == "txt":
        path.write_text(text)
    else:
        write(folder, kind, [json.dumps({"text": text}).encode(), b'{"text": "short"}'])
    documents = read(path, strict=True)
    if kind == "txt":
        assert "".join(d.text for d in documents) == text and len(documents) == 800  # of 64 KiB each
    else:
        assert [d.text == text for d in documents] == [True, False] and documents[1].text == "short"


def test_a_long_text_is_never_whole_in_memory(folder: Path) -> None:
    (folder / "a.txt").write_text("some words of a line\n" * 500_000)
    source = SourceConfig(path=str(folder / "a.txt"))
    parts = split_source(source)
    tracemalloc.start()
    count = sum(1 for part in parts for _ in read_documents(part, source, True))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == -(-21 * 500_000 // text_files.CHUNK) and most < 4 * 2**20


def test_a_hundred_thousand_tiny_rows(folder: Path) -> None:
    (folder / "a.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(100_000)))
    assert [d.text for d in read(folder)] == list(map(str, range(100_000)))


def test_text_that_is_not_utf8_is_one_bad_document(folder: Path) -> None:
    (folder / "a.txt").write_text("good")
    (folder / "b.txt").write_bytes(b"caf\xe9 au lait")
    long = b"x" * (text_files.CHUNK + 5) + b"\xff" + b"y" * text_files.CHUNK
    (folder / "c.txt").write_bytes(long)
    errors = [d.error for d in read(folder) if d.error]
    assert len(errors) == 2 and sum(d.text is not None for d in read(folder)) == 3
    assert f"path: {folder}/b.txt: not UTF-8 (invalid continuation byte at byte 3); expected UTF-8 text" in errors[0]
    assert f"at byte {text_files.CHUNK + 5})" in errors[1]


# --- names and other oddities -----------------------------------------------------------------------------------------


def test_files_whose_name_is_no_utf8(folder: Path) -> None:
    for kind in ("txt", "jsonl", "txt.gz", "jsonl.zst"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9." + kind.encode()))
        content = b'{"text": "a"}\n' + (b"no json" if "json" in kind else b"")
        content = gzip.compress(content) if kind.endswith("gz") else content
        path.write_bytes(pa.compress(content, codec="zstd", asbytes=True) if kind.endswith("zst") else content)
    documents = read(folder)
    assert sum(d.text is not None for d in documents) == 4
    assert all(d.error.isprintable() and "caf\\udce9.jsonl" in d.error for d in documents if d.error)
    (folder / os.fsdecode(b"caf\xe9.parquet")).write_bytes(table(folder, text=["a"]).read_bytes())
    assert "its name is no UTF-8, as .parquet files need; rename it" in error_of(
        folder / os.fsdecode(b"caf\xe9.parquet")
    )


def test_tables_of_other_types(folder: Path) -> None:
    texts = ["one", None, "two"]
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
    for kind in kinds:
        column = pa.array(texts, pa.string()).cast(kind)
        pq.write_table(pa.table({"text": column}), folder / "a.parquet")
        assert [d.text for d in read(folder / "a.parquet")] == texts
    pq.write_table(pa.table({"text": pa.array([b"one"] * 9)}), folder / "a.parquet")
    assert "the text is of type bytes; expected a string" in error_of(folder)
    pq.write_table(pa.table({"text": pa.nulls(9)}), folder / "a.parquet")
    assert "the text is of type NoneType" in error_of(folder)


def test_a_table_s_text_that_is_not_utf8_is_one_bad_row(folder: Path) -> None:
    """No writer checks what is said to be UTF-8."""
    binary = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    claimed = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": claimed, "lang": claimed}), folder / "a.parquet")
    for fields in ({}, {"filter": {"lang": {"in": ["good", "fine"]}}}):
        documents = read(folder / "a.parquet", **fields)
        assert [d.text for d in documents] == ["good", None, "fine"]
        assert "a.parquet row 1: not UTF-8 (" in documents[1].error


def test_a_table_whose_columns_have_broken_names(folder: Path) -> None:
    path = table(folder, text=["a"] * 9, number=[1] * 9)
    path.write_bytes(path.read_bytes().replace(b"number", b"n\xff\xfeber"))
    assert error_of(folder).startswith(f"path: {path}: cannot be read (")


def test_an_edited_file_has_its_lines_counted_again(folder: Path) -> None:
    for empty in (0, 3):
        (folder / "a.jsonl").write_text("\n" * empty + '{"text": "a"}\n' * 20 + "no json")
        source = SourceConfig(path=str(folder))
        last = [d for part in split_source(source, 100) for d in read_documents(part, source, False)][-1]
        assert f"a.jsonl line {empty + 21}: malformed" in last.error


def test_dates_and_decimals_are_compared(folder: Path) -> None:
    days = [datetime.date(2023, 5, 1), datetime.date(2024, 5, 1)]
    times = [datetime.datetime(2023, 5, 1, 12), datetime.datetime(2024, 5, 1, 12)]
    path = table(folder, text=["old", "new"], day=days, time=times, share=[Decimal("0.1"), Decimal("0.9")])
    for conditions in ({"day": {"min": "2024"}}, {"time": {"min": "2024-05-01"}}, {"share": {"min": 0.5}}):
        assert [d.text for d in read(path, filter=conditions)] == [None, "new"]


@pytest.mark.parametrize("kind", ["parquet", "txt.gz", "jsonl.zst"])
def test_an_empty_file_of_a_kind_that_is_never_empty(folder: Path, kind: str) -> None:
    (folder / f"a.{kind}").touch()
    (folder / "b.jsonl").write_text('{"text": "a"}\n' * 9)
    assert error_of(folder).startswith(f"path: {folder}/a.{kind}: cannot be read (")


def test_values_that_are_nested_as_deep_as_json_may_be(folder: Path) -> None:
    for depth in (100, 400, 700, 900, 980, 1100):
        value = b"[" * depth + b"]" * depth
        (folder / "a.jsonl").write_bytes(
            b'{"text": "a", "x": %b}\n{"text": %b, "x": 1}\n{"text": "b"}' % (value, value)
        )
        documents = read(folder)
        assert documents[-1].text == "b" and documents[1].error
        documents = read(folder, filter={"x": {"min": 1}})
        assert [bool(d.error) for d in documents] == [True, True, True]
        messages = b'{"talk": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": %b}}]}]}' % value
        (folder / "a.jsonl").write_bytes(messages)
        (document,) = read(folder, chat_column="talk")
        assert bool(document.error) or depth < 1000  # where the stack ends is not ours to say


def test_a_folder_that_holds_itself(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 9)
    (folder / "round").symlink_to(folder)
    check_sources(DataConfig(sources=str(folder / "**" / "*.jsonl")))
    assert len(read(folder / "**" / "*.jsonl")) == 9


def test_an_empty_path(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "a.txt").write_text("a")
    for path in ("", " "):
        with pytest.raises(InputError, match=r"data\.sources\.0\.path: is empty"):
            check_sources(DataConfig(sources=path))


def test_files_that_go_while_they_are_read(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 9)
    source = SourceConfig(path=str(folder))
    (part,) = split_source(source)
    (folder / "a.jsonl").unlink()
    (last,) = read_documents(part, source, strict=False)
    assert last.fatal and "cannot be read (FileNotFoundError" in last.error
    os.mkfifo(folder / "a.jsonl")  # nobody writes to it, so that opening it would wait for ever
    (last,) = read_documents(part, source, strict=False)
    assert last.fatal and "is no regular file" in last.error
