"""The oracle is naive: tokenise each document alone, join, cut; and each document carries words that no other has."""

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data.blocks import PackedBlocks
from lowrank_clone.data.check import check_sources
from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.prepare import Blocks, prepare
from lowrank_clone.data.sharding.writer import ShardWriter
from lowrank_clone.errors import InputError

EOS = 257
VOCAB = 258


def texts(count: int, word: str = "doc") -> list[str]:
    """Documents of different lengths, each with a number of its own in brackets."""
    return [f"<{word}{i}> " + f"{word} " * (i % 13) for i in range(count)]


def write_jsonl(path: Path, rows: list[str], column: str = "text") -> str:
    lines = "".join(json.dumps({"id": i, column: row}) + "\n" for i, row in enumerate(rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


def write_parquet(path: Path, values: list, column: str = "text") -> str:
    pq.write_table(pa.table({"id": list(range(len(values))), column: values}), path)
    return str(path)


def run(sources: object, *, bos: bool = False, chat: bool = False, max_length: int | None = None, **rest) -> Blocks:
    config = DataConfig(**{"sources": sources, "sequence_length": 16, "validation": 0.1, **rest})
    return prepare(config, tiny_tokenizer(bos=bos, chat=chat), max_length=max_length, vocab_size=VOCAB)


def naive(documents: list[str], length: int, *, bos: bool = False) -> list[list[int]]:
    tokenizer = tiny_tokenizer(bos=bos)
    return cut([[*tokenizer(text)["input_ids"], EOS] for text in documents], length, [256] if bos else [])


def cut(documents: list[list[int]], length: int, bos: list[int]) -> list[list[int]]:
    """Blocks of the joined documents; one that begins inside a document is given a bos. The last may be shorter."""
    stream = [token for ids in documents for token in ids]
    starts = {sum(map(len, documents[:i])) for i in range(len(documents))}
    blocks, at = [], 0
    while at < len(stream):
        start = [] if at in starts else bos
        blocks.append([*start, *stream[at : at + length - len(start)]])
        at += length - len(start)
    return blocks


def blocks_of(rows: PackedBlocks) -> list[tuple[int, ...]]:
    """The ids of all rows, without padding."""
    return [
        tuple(row["input_ids"][row["attention_mask"] != 0 if "attention_mask" in row else slice(None)].tolist())
        for row in rows
    ]


def words(rows: PackedBlocks) -> Counter:
    """How often each word stands in the blocks."""
    text = tiny_tokenizer().decode([token for ids in blocks_of(rows) for token in ids])
    return Counter(re.findall(r"[a-z]+\d*", text.replace("</s>", "")))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [2, 16, 701])
def test_packing_equals_naive_packing(folder: Path, bos: bool, length: int) -> None:
    documents, other = texts(150), texts(40, "val")
    validation = [SourceConfig(path=write_jsonl(folder / "val.jsonl", other))]
    source = write_jsonl(folder / "a.jsonl", documents)
    blocks = run(source, bos=bos, validation=validation, sequence_length=length, max_validation_blocks=None)
    expected = naive(documents, length, bos=bos)
    assert sorted(blocks_of(blocks.train)) == sorted(map(tuple, expected))
    assert sorted(blocks_of(blocks.validation)) == sorted(map(tuple, naive(other, length, bos=bos)))
    padding = sum(length - len(ids) for ids in blocks_of(blocks.train))
    assert blocks.report.sources[0].padding == padding < length


def test_report_accounts_for_every_token(folder: Path) -> None:
    documents = texts(100)
    documents[3:3] = ["", " \n "]
    blocks = run(write_jsonl(folder / "a.jsonl", documents), max_validation_blocks=2)
    train, validation = blocks.report.sources
    assert (train.part, validation.part) == ("train", "validation")
    assert train.documents + validation.documents == 100
    assert train.tokens + validation.tokens == sum(len(text) + 1 for text in texts(100))
    for part, dataset in zip((train, validation), (blocks.train, blocks.validation), strict=True):
        assert part.blocks == len(dataset)
        assert part.tokens + part.padding == (part.blocks + part.unused_blocks) * 16 and part.padding < 16
    assert (validation.blocks, train.unused_blocks, train.skipped) == (2, 0, 0)
    assert (train.blank, validation.blank) == (2, 0)
    assert len(blocks.report.lines()) == 2
    assert f"{train.documents} documents" in str(blocks.report)
    whole = train.tokens + validation.tokens
    assert 0.1 * whole <= validation.tokens <= 0.125 * whole


# --- hold-out, order, mixture ----------------------------------------------------------------------------------------


def test_no_document_is_on_both_sides(folder: Path) -> None:
    blocks = run(write_jsonl(folder / "a.jsonl", [f"doc{i}" for i in range(300)]), sequence_length=9)
    # Blocks cut documents, so only whole words count: those between separators.
    sides = []
    for dataset in (blocks.train, blocks.validation):
        text = " ".join(tiny_tokenizer().decode(ids) for ids in blocks_of(dataset))
        sides.append(set(re.findall(r"</s>(doc\d+)</s>", text)))
    assert len(sides[0]) > 50 and len(sides[1]) > 5
    assert not sides[0] & sides[1]


def test_order_depends_on_the_seed_and_on_nothing_else(folder: Path, tmp_path: Path, monkeypatch) -> None:
    sources = [write_jsonl(folder / f"{name}.jsonl", texts(100, name)) for name in "ab"]
    first = run(sources, seed=1)
    again = run(sources, seed=1)
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "other"))
    fresh, other = run(sources, seed=1), run(sources, seed=2)
    for side in ("train", "validation"):
        expected = blocks_of(getattr(first, side))
        assert blocks_of(getattr(again, side)) == expected
        assert blocks_of(getattr(fresh, side)) == expected
        assert blocks_of(getattr(other, side)) != expected


def test_seed_decides_the_hold_out_and_the_order(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(100))
    held = [sorted(blocks_of(run(path, seed=seed).validation)) for seed in (1, 2)]
    assert held[0] != held[1]
    validation = write_jsonl(folder / "val.jsonl", texts(20, "val"))
    first, second = (blocks_of(run(path, seed=seed, validation=validation).train) for seed in (1, 2))
    assert first != second and sorted(first) == sorted(second)


def test_weights_are_shares_of_tokens_in_every_stretch(folder: Path) -> None:
    # Documents of `b` are twice as long: shares of documents would come out differently.
    a = write_jsonl(folder / "a.jsonl", [f"a{i:06}" for i in range(800)])
    b = write_jsonl(folder / "b.jsonl", [f"b{i:014}" for i in range(400)])
    blocks = run([SourceConfig(path=a, weight=3), SourceConfig(path=b, weight=1)])
    letters = np.array([tiny_tokenizer().decode(ids).count("a") > 0 for ids in blocks_of(blocks.train)])
    assert abs(letters.mean() - 0.75) < 0.01
    for stretch in np.array_split(letters, 8):
        assert abs(stretch.mean() - 0.75) < 0.05
    first, second = (s for s in blocks.report.sources if s.part == "train")
    assert (first.unused_blocks, second.blocks) == (0, round(first.blocks / 3))
    assert second.unused_blocks > 0


def test_another_weight_reads_nothing_again(folder: Path, monkeypatch) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(100))
    run([SourceConfig(path=path)])
    monkeypatch.setattr(ShardWriter, "__init__", lambda *_, **__: pytest.fail("tokenised again"))
    run([SourceConfig(path=path, weight=2.0)])


def test_edited_file_is_read_again(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(100, "old"))
    run(path)
    write_jsonl(folder / "a.jsonl", texts(100, "new"))
    os.utime(path, ns=(1, 1))
    assert words(run(path).train)["new"] > 0


# --- kinds of sources ------------------------------------------------------------------------------------------------


def make_source(folder: Path, kind: str) -> str:
    documents = texts(60)
    halves = documents[:30], documents[30:]
    if kind == "parquet":
        return write_parquet(folder / "a.parquet", documents)
    if kind in ("jsonl", "jsonl.gz", "json.gz"):
        return write_jsonl(folder / f"a.{kind}", documents)
    for name, half in zip("ab", halves, strict=True):
        write_jsonl(folder / f"{name}.jsonl", half)
    (folder / "sub").mkdir()
    (folder / ".hidden").write_text("no document")
    if kind == "mixed folder":
        (folder / "b.jsonl").unlink()
        write_parquet(folder / "sub" / "b.parquet", halves[1])
        return str(folder)
    write_jsonl(folder / "sub" / "c.jsonl", ["unwanted"])
    return str(folder / "*.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json.gz", "parquet", "glob", "mixed folder"])
def test_every_kind_of_source_gives_the_same_blocks(folder: Path, kind: str) -> None:
    validation = write_jsonl(folder.parent / "val.jsonl", texts(20, "val"))
    blocks = run(make_source(folder, kind), validation=[validation])
    assert sorted(blocks_of(blocks.train)) == sorted(map(tuple, naive(texts(60), 16)))


def test_small_text_files_are_documents(folder: Path) -> None:
    for i, text in enumerate(texts(60)):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / "60.txt.gz").write_bytes(gzip.compress(b"compressed"))
    validation = write_jsonl(folder.parent / "val.jsonl", texts(20, "val"))
    blocks = run(str(folder), validation=validation)
    assert blocks.report.sources[0].documents == 61
    assert sorted(blocks_of(blocks.train)) == sorted(map(tuple, naive([*texts(60), "compressed"], 16)))


def test_a_limit_takes_the_first_documents(folder: Path) -> None:
    for i, name in enumerate("abc"):
        write_jsonl(folder / f"{name}.jsonl", texts(60)[20 * i : 20 * i + 20])
    validation = write_jsonl(folder.parent / "val.jsonl", texts(20, "val"))
    blocks = run([SourceConfig(path=str(folder), max_documents=30)], validation=validation, num_proc=2)
    assert blocks.report.sources[0].documents == 30
    assert sorted(blocks_of(blocks.train)) == sorted(map(tuple, naive(texts(60)[:30], 16)))


def test_workers_change_nothing(folder: Path) -> None:
    for name in "abc":
        write_jsonl(folder / f"{name}.jsonl", texts(40, name))
    assert blocks_of(run(str(folder), num_proc=2).train) == blocks_of(run(str(folder)).train)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_chats_go_through_the_template(folder: Path, kind: str) -> None:
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(40)]
    chats[1] += [{"role": "user", "content": "unanswered"}]
    chats[2][0]["name"] = "someone"  # a table gives this field to every message
    path = folder / f"a.{kind}"
    source = write_jsonl(path, chats, "talk") if kind == "jsonl" else write_parquet(path, chats, "talk")
    validation = write_jsonl(folder / "val.jsonl", texts(20, "val"))
    # The tokenizer's own bos must not come on top of the template's.
    blocks = run([SourceConfig(path=source, chat_column="talk")], validation=validation, chat=True, bos=True)
    tokenizer = tiny_tokenizer(chat=True)
    documents = []
    for i, chat in enumerate(chats):
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        # The template ends an answer, and so the document, by itself.
        documents.append([*tokenizer(text)["input_ids"], *([EOS] if i == 1 else [])])
    expected = map(tuple, cut(documents, 16, [256]))
    assert sorted(blocks_of(blocks.train)) == sorted(expected)


# --- configuration ---------------------------------------------------------------------------------------------------


def test_short_forms_of_sources() -> None:
    full = [SourceConfig(path="a.txt")]
    assert DataConfig(sources="a.txt").sources == full
    assert DataConfig(sources=["a.txt"], validation="a.txt").validation == full
    assert DataConfig(sources={"path": "a.txt"}).sources == DataConfig(sources=full).sources == full


BAD_VALUES = [
    ({"sequence_length": 1}, "expected a whole number from 2 to"),
    ({"sequence_length": 65, "max_length": 64}, "data.sequence_length: got 65, the model takes at most 64"),
    ({"sequence_length": 10**9}, "expected a whole number from 2 to"),
    ({"validation": 0.0}, "expected a number above 0 and up to 0.9"),
    ({"validation": 1.0}, "expected a number above 0 and up to 0.9"),
    ({"validation": []}, "data.validation: is an empty list"),
    ({"sources": []}, "data.sources: is empty"),
    ({"max_validation_blocks": 0}, "expected a whole number from 1 to"),
    ({"num_proc": 0}, "expected a whole number from 1 to 256"),
    ({"num_proc": 10**6}, "expected a whole number from 1 to 256"),
    ({"seed": -1}, "expected a whole number from 0 to"),
    ({"sources": [{"path": "x", "weight": 0}]}, "expected a number from 1e-09 to"),
    ({"sources": [{"path": "x", "weight": -1}]}, "expected a number from 1e-09 to"),
    ({"sources": [{"path": "x", "weight": float("nan")}]}, "expected a number from 1e-09 to"),
    ({"sources": [{"path": "x", "max_documents": 0}]}, "expected a whole number from 1 to"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_bad_values(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**{"sources": "unread.txt", **values})


# --- bad input: every mistake is one line, found before any long work ------------------------------------------------


def check(source: object, **rest) -> str:
    return error_of(lambda: check_sources(DataConfig(sources=source, **rest)))


@pytest.mark.parametrize("path", ["/no/such/corpus", "./corpus", "a/b/c", "corpus.txt", "owner/corpus.jsonl"])
def test_missing_path(path: str) -> None:
    assert f"data.sources.0.path: no such file or folder as `{path}`; expected" in check(path)


@pytest.mark.parametrize("content", [b"", b" \n\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_file_without_text(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert f"{name}` holds no text" in check(str(folder / name))


def test_folder_or_glob_without_files(folder: Path) -> None:
    assert "holds no files" in check(str(folder))
    assert "holds no files" in check(str(folder / "*.txt"))


def test_blank_rows_only(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", [" "] * 20)
    assert "data.sources.0.path: " in error_of(lambda: run(path))
    assert "holds no text (20 rows left out: blank)" in error_of(
        lambda: run(path, validation=write_jsonl(folder / "v.jsonl", texts(9)))
    )


@pytest.mark.parametrize("name", ["a.csv", "a.txt.xz", "a.parquet.gz", "a.gz", "noextension"])
def test_unknown_extension(folder: Path, name: str) -> None:
    (folder / name).write_text("text")
    assert "unknown extension" in check(str(folder / name))
    assert "unknown extension" in check(str(folder))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.parquet"])
def test_corrupt_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"neither gzip nor parquet")
    assert f"{name}: cannot be read" in check(str(folder / name), on_error="skip")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_file_that_breaks_off(folder: Path, on_error: str) -> None:
    lines = "".join(json.dumps({"text": f"{i} " + os.urandom(400).hex()}) + "\n" for i in range(2000)).encode()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-2000])
    path = str(folder / "a.jsonl.gz")
    check_sources(DataConfig(sources=path))
    assert "a.jsonl.gz: cannot be read (EOFError" in error_of(lambda: run(path, on_error=on_error))


def test_text_that_is_not_utf8(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"caf\xe9")
    assert "a.txt: not UTF-8 (unexpected end of data at byte 3); expected UTF-8 text" in check(str(folder / "a.txt"))


def test_file_without_permission(folder: Path, monkeypatch) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(9))
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may read everything, so the mode can't be it
    assert "a.jsonl: cannot be read (PermissionError" in check(path)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_absent_column(folder: Path, kind: str, on_error: str) -> None:
    write = write_jsonl if kind == "jsonl" else write_parquet
    path = write(folder / f"a.{kind}", texts(20))
    message = check([SourceConfig(path=path, text_column="body")], on_error=on_error)
    assert message.startswith("data.sources.0.text_column: ")
    assert "no column `body`; expected one of the columns id, text" in message


BAD_LINES = [
    ('{"text": "unclosed', "malformed JSON (Unterminated string starting, column 10)"),
    ('{"text": "caf\udce9"}', "not UTF-8 (invalid continuation byte at byte 13)"),
    ("[1, 2]", "got a JSON list; expected one object per line"),
    ('{"text": null}', "the text is of type NoneType; expected a string"),
    ('{"text": 5}', "the text is of type int; expected a string"),
    ('{"other": "x"}', "no column `text`; expected one of the columns other"),
    (r'{"text": "\ud800"}', "surrogates not allowed"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_malformed_line(folder: Path, line: str, message: str) -> None:
    path = folder / "a.jsonl"
    good = [json.dumps({"text": text}) for text in texts(100)]
    for place in (2, 80):  # among the rows that are read before any long work, and beyond them
        path.write_text("\n".join([*good[:place], line, *good[place:]]), errors="surrogateescape")
        got = error_of(lambda: run(str(path)))
        assert f"a.jsonl line {place + 1}: " in got and message in got
    blocks = run(str(path), on_error="skip")
    train, validation = blocks.report.sources
    assert (train.skipped, train.blank, validation.skipped) == (1, 0, 0)
    assert train.documents + validation.documents == 100
    assert "1 malformed row skipped, first: " in blocks.report.lines()[1] and message in blocks.report.lines()[1]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_malformed_line_in_one_of_many_files(folder: Path, num_proc: int | None) -> None:
    for name in "abc":
        write_jsonl(folder / f"{name}.jsonl", texts(60, name))
    with open(folder / "b.jsonl", "a") as file:
        file.write("no json")
    assert "b.jsonl line 61: malformed JSON" in error_of(lambda: run(str(folder), num_proc=num_proc))
    assert run(str(folder), num_proc=num_proc, on_error="skip").report.sources[0].skipped == 1


def test_null_in_parquet(folder: Path) -> None:
    path = write_parquet(folder / "a.parquet", [*texts(100), None])
    assert "a.parquet row 100: the text is of type NoneType" in error_of(lambda: run(path))
    assert run(path, on_error="skip").report.sources[0].skipped == 1


@pytest.mark.parametrize("chat", ["hello", [], None, [{"role": "user"}], [{"content": "x"}], [["user", "x"]]])
def test_value_that_is_no_chat(folder: Path, chat: object) -> None:
    (folder / "a.jsonl").write_text(json.dumps({"talk": chat}))
    message = check([SourceConfig(path=str(folder / "a.jsonl"), chat_column="talk")])
    assert "a.jsonl line 1: " in message and "expected a list of {role, content} messages" in message


def test_chat_that_the_template_refuses(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "tiny_tokenizer.CHAT_TEMPLATE",
        "{% for m in messages %}{{ raise_exception('bad role') if m.role == 'x' }}{{ m.content }}{% endfor %}",
    )
    chats = [[{"role": "x" if i == 30 else "user", "content": f"some words {i}"}] for i in range(40)]
    source = [SourceConfig(path=write_jsonl(folder / "a.jsonl", chats, "talk"), chat_column="talk")]
    assert "line 31: the chat template refuses it" in error_of(lambda: run(source, chat=True))
    assert run(source, chat=True, on_error="skip").report.sources[0].skipped == 1


def test_tokenizer_without_template_or_eos(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", [[{"role": "user", "content": "x"}]] * 20, "talk")
    assert "has no chat template" in error_of(lambda: run([SourceConfig(path=path, chat_column="talk")]))
    config = DataConfig(sources=write_jsonl(folder / "b.jsonl", texts(20)))
    tokenizer = tiny_tokenizer(eos=False)
    assert "no eos token" in error_of(lambda: prepare(config, tokenizer, max_length=None, vocab_size=VOCAB))


def test_id_beyond_the_embedding(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<rare>"])

    def attempt(text: str, vocab_size: int = VOCAB, num_proc: int | None = None) -> Blocks:
        path = write_jsonl(folder / f"{len(text)}.jsonl", [*texts(40), text])
        config = DataConfig(sources=path, sequence_length=16, validation=0.1, num_proc=num_proc)
        return prepare(config, tokenizer, max_length=None, vocab_size=vocab_size)

    attempt("a token that never occurs does no harm")
    for num_proc in (None, 2):
        message = error_of(lambda n=num_proc: attempt("a <rare> one", num_proc=n))
        assert "token '<rare>' has id 258, beyond the model's embedding of 258" in message
    assert "token '</s>' has id 257" in error_of(lambda: attempt("eos", vocab_size=257))


def test_too_little_text(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", [f"no{i:02}" for i in range(20)])
    message = error_of(lambda: run(path, sequence_length=100))
    assert "has 100 tokens, but a block for training and one for validation need 200" in message
    validation = write_jsonl(folder / "v.jsonl", ["four"] * 40)
    assert len(run(path, sequence_length=100, validation=validation).train) == 1
    message = error_of(lambda: run(path, sequence_length=101, validation=validation))
    assert "data.sources.0.path: " in message and "100 tokens for train but one block needs 101" in message
    single = write_jsonl(folder / "s.jsonl", ["one document that is long enough for many blocks" * 9])
    assert "is one document with text" in error_of(lambda: run(single))


def test_same_file_twice(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(20))
    (folder / "link.jsonl").symlink_to(path)
    assert "is already part of data.sources.0" in check([path, path])
    assert "is already part of data.sources.0" in check(path, validation=str(folder / "link.jsonl"))


def test_hub_options_for_a_file(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", texts(20))
    assert "name and split select from a Hub dataset" in check([SourceConfig(path=path, split="test")])
    assert "name and split select from a Hub dataset" in check([SourceConfig(path=path, name="en")])
