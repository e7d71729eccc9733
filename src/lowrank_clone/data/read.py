"""Reading documents. An origin is a local file or a Hub dataset; readers yield (place, value or ValueError).

Errors name the field of the source that has to be mended (`path`, `text_column`, `chat_column`); who calls puts the
source's own key before it.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import InputError
from .config import SourceConfig
from .files import extension, find_files, version_of

_CHUNK = 64 * 1024  # characters of a text file that one document holds at most
_LONGEST_LINE = 64 * 2**20  # bytes of a line of JSON
DOCUMENTS_PER_BATCH = 64  # documents per tokenizer call; bounds memory when documents are long
ADVICE = "; mend the row or the configuration, or set on_error: skip"
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def find_origins(source: SourceConfig) -> list[tuple[str, str]]:
    """`(path, version)` of each origin; the version makes the cache notice an edited file or a new Hub revision."""
    found = find_files(source.path)
    if found is None:
        from datasets import load_dataset_builder

        return [(source.path, _hub(source, load_dataset_builder).cache_dir)]
    return [(file, version_of(file)) for file in found.files]


def _hub(source: SourceConfig, load: Callable[..., Any], **options: Any) -> Any:
    try:
        return load(source.path, source.name, **options)
    except Exception as error:  # whatever the remote side fails with, the source is what the user must mend
        raise InputError(
            f"path: `{source.path}` is neither an existing file or folder nor a Hub dataset that loads with "
            f"name={source.name}, split={source.split} ({error_reason(error)}); check the spelling and the network"
        ) from error


def error_reason(error: BaseException) -> str:
    """The type and text of a library's error, for the brackets of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def open_file(path: str) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a file, unpacked."""
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _read_text(path: str, _: SourceConfig) -> Iterator[tuple[str, Any]]:
    with open_file(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        rest = ""
        while piece := stream.read(_CHUNK):
            rest += piece
            while len(rest) > _CHUNK:
                cut = _border(rest)
                yield path, rest[:cut]
                rest = rest[cut:]
        if rest:
            yield path, rest


def _border(text: str) -> int:
    """End of the last paragraph that ends in the second half of a chunk; else of the last line, word or character."""
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, _CHUNK // 2, _CHUNK)) >= 0:
            return place + len(mark)
    return _CHUNK


def _read_json(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    with open_file(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(_LONGEST_LINE)
            if not line:
                return
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield f"{path} line {number}", ValueError(f"a line of more than {_LONGEST_LINE:,} bytes")
            elif line.strip():
                yield f"{path} line {number}", _json_value(line, source)


def _json_value(line: bytes, source: SourceConfig) -> Any:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); expected JSON in UTF-8")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return ValueError(f"malformed JSON ({what}, column {error.colno}); expected one object per line")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        return ValueError(f"JSON that can't be read ({error_reason(error)}); expected one object per line")
    if not isinstance(record, dict):
        return ValueError(f"got a JSON {type(record).__name__}; expected one object per line")
    return record[source.column] if source.column in record else AbsentColumn(source, list(record))


class AbsentColumn(ValueError):
    """A record without the column that the source names."""

    def __init__(self, source: SourceConfig, columns: Sequence[str]) -> None:
        expected = f"expected one of the columns {', '.join(columns[:20])}" if columns else "it has none"
        super().__init__(f"no column `{source.column}`; {expected}")


def _read_parquet(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns, row = file.schema_arrow.names, itertools.count()
            if source.column not in columns:
                yield path, AbsentColumn(source, columns)
                return
            for batch in file.iter_batches(batch_size=DOCUMENTS_PER_BATCH, columns=[source.column]):
                yield from ((f"{path} row {next(row)}", value) for value in batch.column(0).to_pylist())
    except pa.ArrowException as error:
        raise OSError(error_reason(error)) from error


def _read_hub(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    # Streaming fetches the first documents of a large dataset and no more.
    rows = _hub(source, load_dataset, split=source.split, streaming=source.max_documents is not None)
    for number, row in enumerate(rows):
        column = source.column
        yield f"{path} row {number}", row[column] if column in row else AbsentColumn(source, list(row))


_READERS = {".txt": _read_text, ".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet, "": _read_hub}


def read_documents(origins: Sequence[tuple[str, str]], source: SourceConfig, strict: bool) -> Iterator[dict[str, Any]]:
    """One row for each document: `text`, or `error`; `fatal` errors end the reading whatever `strict` says.

    An unreadable origin and, with `strict`, the first bad row is the last one. Errors are yielded, not raised:
    `datasets` wraps what a generator raises, and the cause is lost between processes.
    """
    good = 0
    for path, _ in origins:
        try:
            for place, value in _READERS[extension(path)](path, source):
                row = _row(place, value, source)
                yield row
                good += row["error"] is None
                if good == source.max_documents or (strict and row["error"]):
                    return
        except (InputError, *_UNREADABLE) as error:
            message = str(error) if isinstance(error, InputError) else _unreadable(path, error)
            yield {"text": None, "error": message, "fatal": True}
            return


def _unreadable(path: str, error: BaseException) -> str:
    what = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "an intact file that you may read"
    return f"path: {path}: cannot be read ({error_reason(error)}); expected {what}"


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn what a damaged file raises into one line.

    Raises:
        InputError: It names the field `path`.
    """
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(_unreadable(path, error)) from error


def _row(place: str, value: Any, source: SourceConfig) -> dict[str, Any]:
    """One document or its error; messages are kept as JSON, because Arrow wants the same keys in all rows."""
    field = "path"
    try:
        if isinstance(value, AbsentColumn):
            field = "chat_column" if source.chat_column else "text_column"
        if isinstance(value, ValueError):
            raise value
        if extension(place) != ".txt":
            field = "chat_column" if source.chat_column else "text_column"
        text = _messages(value) if source.chat_column else value
        if not isinstance(text, str):
            raise ValueError(f"the text is of type {type(text).__name__}; expected a string")
        if "\0" in text:
            raise ValueError(f"a NUL character stands at {text.index(chr(0)):,}; expected text, in UTF-8")
        text.encode()  # JSON may hold half a surrogate pair, which no tokenizer can take
    except (ValueError, RecursionError) as error:
        message = f"{field}: {place}: {error}{ADVICE}"
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
