"""Texts and templates that are damaged or hostile: one line that names the key, and nothing hangs."""

import gzip
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.estimate import estimate_text
from lowrank_clone.data.prepare import Blocks, prepare
from lowrank_clone.errors import InputError

GOOD = [json.dumps({"text": f"row {i} " + "words " * 10}) for i in range(40)]
BOS, EOS = 256, 257


def run(
    path: Path,
    *,
    chat_template: str | None = None,
    bos: bool = False,
    on_error: str = "raise",
    sequence_length: int = 16,
    **source,
) -> Blocks:
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.chat_template = chat_template
    sources = [{"path": str(path), **source}]
    config = DataConfig(sources=sources, sequence_length=sequence_length, validation=0.1, on_error=on_error)
    return prepare(config, tokenizer, max_length=None, vocab_size=258)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


LINES = [
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "path", "JSON that can't be read (RecursionError"),
    (b'{"text": "a", "other": ' + b"9" * 5000 + b"}", "path", "JSON that can't be read (ValueError: Exceeds the limit"),
    (b"null", "path", "got a JSON NoneType; expected one object per line"),
    (b'{"text": "a\0b"}', "path", "malformed JSON (Invalid control character"),
    (b'{"text": "a\\u0000b"}', "text_column", "a NUL character stands at 1; expected text"),
    (b'{"text": "caf\xe9"}', "path", "not UTF-8"),
    (b'{"other": "a"}', "text_column", "no column `text`; expected one of the columns other"),
    (b"{}", "text_column", "no column `text`; it has none"),
    (b'{"text": ["a"]}', "text_column", "the text is of type list; expected a string"),
]


@pytest.mark.parametrize(("line", "field", "message"), LINES)
@pytest.mark.parametrize("place", [0, 40])
def test_lines(folder: Path, line: bytes, field: str, message: str, place: int) -> None:
    lines = [good.encode() for good in GOOD]
    (folder / "a.jsonl").write_bytes(b"\n".join([*lines[:place], line, *lines[place:]]))
    got = error_of(lambda: run(folder))
    assert got.startswith(f"data.sources.0.{field}: {folder / 'a.jsonl'} line {place + 1}: ") and message in got
    assert run(folder, on_error="skip").report.sources[0].skipped == 1


def test_a_line_without_end(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("lowrank_clone.data.readers.json_files.LONGEST", 1000)
    (folder / "a.jsonl").write_text("\n".join([*GOOD, json.dumps({"text": "x" * 5000}), *GOOD[:3]]))
    assert "a.jsonl line 41: a line of more than 1,000 bytes" in error_of(lambda: run(folder))
    report = run(folder, on_error="skip").report
    assert report.sources[0].skipped == 1 and sum(part.documents for part in report.sources) == 43


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("words " * 300).encode("utf-16"), "expected UTF-8 text"),
        (b"words \0 words " * 300, "a NUL character stands at 6; expected text, in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe" * 300, "expected UTF-8 text"),
    ],
)
def test_files_that_are_no_text(folder: Path, content: bytes, message: str) -> None:
    (folder / "a.txt").write_bytes(content)
    got = error_of(lambda: run(folder))
    assert got.startswith("data.sources.0.path: ") and "a.txt" in got and message in got


def test_one_empty_file_harms_no_others(folder: Path) -> None:
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"{i} " + "words " * 20)
    (folder / "empty.txt").write_text("")
    report = run(folder).report
    assert sum(part.documents for part in report.sources) == 20


def test_packed_text_that_breaks_off_is_told_by_the_estimate(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(GOOD).encode())[:-20])
    config = DataConfig(sources=str(folder), sequence_length=16)
    message = error_of(lambda: estimate_text(config, tiny_tokenizer()))
    assert message.startswith("data.sources.0.path: ") and "a.jsonl.gz: cannot be read (EOFError" in message


# --- chat templates are programs --------------------------------------------------------------------------------------

TEMPLATES = [
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{{ 'a' * 20000000 }}", "it makes 20,000,000 characters of it"),
    ("{% import 'os' as os %}", "TypeError"),
    ("{% for %}", "TemplateSyntaxError"),
    ("{{ x.y }}", "UndefinedError"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    ("{{ raise_exception('never') }}", "TemplateError: never"),
    ("{{ messages[0]['content'] + 1 }}", "TypeError"),
    ("{{ '' }}", "it makes no text of it"),
]


@pytest.mark.parametrize(("template", "reason"), TEMPLATES)
def test_templates_may_fail_with_anything(folder: Path, template: str, reason: str) -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"talk": chat}) for _ in range(3)))
    got = error_of(lambda: run(folder, chat_template=template, chat_column="talk"))
    assert got.startswith("data.sources.0.chat_column: ") and "the chat template refuses it" in got and reason in got
    config = DataConfig(sources=[{"path": str(folder), "chat_column": "talk"}], sequence_length=16)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert reason in error_of(lambda: estimate_text(config, tokenizer))


# --- special tokens that stand in text --------------------------------------------------------------------------------


def counts(blocks: Blocks) -> tuple[int, int, int]:
    """How often bos and eos occur in both sides' blocks, and how often one of them stands twice in a row."""
    rows = [row["input_ids"].tolist() for side in (blocks.train, blocks.validation) for row in side]
    doubled = sum((a, b) in ((BOS, BOS), (EOS, EOS)) for row in rows for a, b in pairwise(row))
    ids = [token for row in rows for token in row]
    return ids.count(BOS), ids.count(EOS), doubled


def test_text_stays_text_and_a_word_is_said(folder: Path) -> None:
    """Forty pages of 47 bytes and an eos each: 48 tokens, three blocks."""
    pages = [f"{i:02} <p><s>old price</s> new price</p> words" for i in range(40)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": page.ljust(47)}) for page in pages))
    blocks = run(folder)
    assert counts(blocks) == (0, 40, 0)
    assert blocks.report.sources[0].spelt == 40
    assert "40 documents with special tokens spelt out, which stay text; special_tokens: parse" in str(blocks.report)


def test_rendered_chats_are_read_as_tokens_where_the_source_says_so(folder: Path) -> None:
    """The text's own bos and eos are not doubled: `<s>` + 30 bytes + `</s>` is 32 tokens, a block."""
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": f"<s>{i:030}</s>"}) for i in range(40)))
    assert counts(run(folder, bos=True, special_tokens=True, sequence_length=32)) == (40, 40, 0)
    plain = run(folder, bos=True)  # its own bos and eos around 37 bytes of text
    assert plain.report.sources[0].tokens + plain.report.sources[1].tokens == 40 * 39


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch) -> None:
    (folder / "a.jsonl").write_text("\n".join(GOOD))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "file" / "cache"))
    got = error_of(lambda: run(folder))
    assert str(tmp_path / "file") in got and "data.shards" in got


def test_a_cache_that_is_full(folder: Path, monkeypatch) -> None:
    (folder / "a.jsonl").write_text("\n".join(GOOD))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowrank_clone.data.sharding.writer.ShardWriter.finish", full)
    assert "No space left on device" in error_of(lambda: run(folder))


def test_an_edit_of_the_same_size_and_time_is_seen(folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_text("\n".join(GOOD))
    before = os.stat(path)
    run(folder)
    path.write_text("\n".join(line.replace("words", "WORDS") for line in GOOD))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    text = tiny_tokenizer().decode([token for row in run(folder).train for token in row["input_ids"].tolist()])
    assert "WORDS" in text and "words" not in text
