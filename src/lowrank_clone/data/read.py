"""Finding and reading documents. An origin is a local file or a Hub dataset; readers yield
(place, value or ValueError)."""

import glob
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset, load_dataset_builder

from ..errors import InputError
from .config import SourceConfig

_EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_CHUNK = 64 * 1024  # characters of a text file per document
DOCUMENTS_PER_BATCH = 64  # documents per tokenizer call; bounds memory when documents are long
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException)


def local_files(path: str) -> list[str] | None:
    """Sorted absolute files of a local source; None if `path` can only be the name of a Hub dataset."""
    full = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(full):
        files = [str(p) for p in Path(full).rglob("[!._]*") if p.is_file()]
    elif os.path.exists(full):
        files = [full]
    elif glob.has_magic(path):
        files = [f for f in glob.glob(full, recursive=True) if os.path.isfile(f)]
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not _extension(path):
        return None
    else:
        raise InputError(f"source {path}: no such file or folder; expected an existing path or a Hub dataset name")
    if not files:
        raise InputError(f"source {path}: holds no files; expected at least one of {', '.join(_EXTENSIONS)}")
    for file in files:
        if not _extension(file):
            known = ", ".join(_EXTENSIONS)
            raise InputError(f"source {path}: unknown extension of {file}; expected {known}; a glob can select files")
    return sorted(files)


def _extension(path: str) -> str:
    """The known extension of `path` without .gz, or an empty string."""
    return next((e.removesuffix(".gz") for e in _EXTENSIONS if path.lower().endswith(e)), "")


def find_origins(source: SourceConfig) -> list[tuple[str, str]]:
    """`(path, version)` of each origin; the version makes the cache notice an edited file or a new Hub revision."""
    files = local_files(source.path)
    if files is None:
        return [(source.path, _hub(source, load_dataset_builder).cache_dir)]
    return [(f, f"{os.stat(f).st_size} {os.stat(f).st_mtime_ns}") for f in files]


def _hub(source: SourceConfig, load: Callable[..., Any], **options: Any) -> Any:
    try:
        return load(source.path, source.name, **options)
    except Exception as error:  # whatever the remote side fails with, the source is what the user must mend
        raise InputError(
            f"source {source.path}: neither an existing file or folder nor a Hub dataset that loads with "
            f"name={source.name}, split={source.split} ({error_reason(error)}); check the spelling and the network"
        ) from error


def error_reason(error: Exception) -> str:
    """An exception's type and text on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _open(path: str) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _read_text(path: str, _: SourceConfig) -> Iterator[tuple[str, Any]]:
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        rest = ""
        while piece := stream.read(_CHUNK):
            rest += piece
            if len(rest) > _CHUNK:
                cut = _border(rest, len(rest) // 2)  # in the second half: documents of about one size
                yield path, rest[:cut]
                rest = rest[cut:]
        if rest:
            yield path, rest


def _border(text: str, start: int) -> int:
    """End of the last paragraph that ends after `start`; else of the last line, word or character."""
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, start)) >= 0:
            return place + len(mark)
    return len(text)


def _read_json(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path} line {number}", _json_value(line, source.column)


def _json_value(line: bytes, column: str) -> Any:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); expected JSON in UTF-8")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return ValueError(f"malformed JSON ({what}, column {error.colno}); expected one object per line")
    if not isinstance(record, dict):
        return ValueError(f"got a JSON {type(record).__name__}; expected one object per line")
    return record[column] if column in record else _absent(column, list(record))


def _absent(column: str, columns: list[str]) -> ValueError:
    return ValueError(f"no column `{column}`; expected one of the columns {', '.join(columns[:20])}")


def _read_parquet(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(path) as file:
        columns, row = file.schema_arrow.names, itertools.count()
        if source.column not in columns:
            yield path, _absent(source.column, columns)
            return
        for batch in file.iter_batches(batch_size=DOCUMENTS_PER_BATCH, columns=[source.column]):
            yield from ((f"{path} row {next(row)}", value) for value in batch.column(0).to_pylist())


def _read_hub(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    # Streaming fetches the first documents of a large dataset and no more.
    rows = _hub(source, load_dataset, split=source.split, streaming=source.max_documents is not None)
    for number, row in enumerate(rows):
        column = source.column
        yield f"{path} row {number}", row[column] if column in row else _absent(column, list(row))


_READERS = {".txt": _read_text, ".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet, "": _read_hub}


def read_documents(origins: Sequence[tuple[str, str]], source: SourceConfig, strict: bool) -> Iterator[dict[str, Any]]:
    """Rows of `_DOCUMENT`; an unreadable origin and, with `strict`, the first bad row is the last one.

    Errors are yielded, not raised: `datasets` wraps what a generator raises, and the cause is lost between processes.
    """
    good = 0
    for path, _ in origins:
        try:
            for place, value in _READERS[_extension(path)](path, source):
                row = _row(place, value, source.chat_column is not None)
                yield row
                good += row["error"] is None
                if good == source.max_documents or (strict and row["error"]):
                    return
        except (InputError, *_UNREADABLE) as error:
            message = f"{path}: cannot be read ({error_reason(error)}); expected an intact file that you may read"
            yield {"text": None, "error": str(error) if isinstance(error, InputError) else message, "fatal": True}
            return


def _row(place: str, value: Any, chat: bool) -> dict[str, Any]:
    """A row of `_DOCUMENT`; messages are kept as JSON, because Arrow wants the same keys in all rows."""
    try:
        if isinstance(value, ValueError):
            raise value
        text = _messages(value) if chat else value
        if not isinstance(text, str):
            raise ValueError(f"the text is of type {type(text).__name__}; expected a string")
        text.encode()  # JSON may hold half a surrogate pair, which no tokenizer can take
    except ValueError as error:
        message = f"{place}: {error}; mend the row or the configuration, or set on_error: skip"
        return {"text": None, "error": message, "fatal": False}
    return {"text": text, "error": None, "fatal": False}


def _messages(value: Any) -> str:
    """JSON of the messages without null fields (tables fill absent keys with null)."""
    expected = "expected a list of {role, content} messages"
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"the chat is {str(value)[:60]!r}; {expected}")
    messages = [{k: v for k, v in m.items() if v is not None} for m in value]
    for m in messages:
        content = m.get("content", "" if "tool_calls" in m else None)
        if not isinstance(m.get("role"), str) or not isinstance(content, str):
            raise ValueError(f"a message has {sorted(m)}, and role and content are not both strings; {expected}")
    return json.dumps(messages, default=str)
