"""JSON, one object per line (.jsonl, .json) or one array of objects (.json)."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..files import extension
from .columns import Columns
from .documents import Piece, Place, RowError
from .opening import open_file

LONGEST = 80 * 2**20  # bytes of one object; escapes take more of them than the text itself
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**20  # bytes read at a time
_HEAD = 2**16  # bytes among which the first character stands


def read_lines(piece: Piece, columns: Columns) -> Iterator[tuple[Place, Any]]:
    """The values of a file of one JSON object per line: the lines that begin in `start` to `stop`."""
    each = "per line, or one array of them" if extension(piece.path) == ".json" else "per line"
    with open_file(piece.path) as stream:
        position = _first_line(stream, piece.start)
        after, number = position, 0
        while piece.stop is None or position < piece.stop:
            line = stream.readline(LONGEST)
            if not line:
                return
            number += 1
            position += len(line)
            if len(line) == LONGEST and not line.endswith(b"\n"):
                position += _skip_line(stream)
                yield Place(piece.path, "line", number, after), _too_long("line")
            elif not line.isspace():
                yield Place(piece.path, "line", number, after), json_value(line, columns, each)


def _first_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or later, and say where that is."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    """Bytes of the rest of a line, which are passed over."""
    skipped = 0
    while rest := stream.readline(_CHUNK):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _too_long(what: str) -> RowError:
    return RowError(f"a {what} of more than {LONGEST:,} bytes; expected a document that fits into memory", "path")


def json_value(line: bytes, columns: Columns, each: str) -> Any:
    """What a source reads of one JSON object, or the error.

    Args:
        each: How the message says that objects stand in the file: per line, or in the array.
    """
    try:
        record = json.loads(line.removeprefix(_BOM).decode().strip())
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 ({error.reason} at byte {error.start}); expected JSON in UTF-8", "path")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return RowError(f"malformed JSON ({what}, column {error.colno}); expected one object {each}", "path")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        what = f"{type(error).__name__}: {error}"[:200]
        return RowError(f"JSON that can't be read ({what}); expected one object {each}", "path")
    if not isinstance(record, dict):
        return RowError(f"got a JSON {type(record).__name__}; expected one object {each}", "path")
    try:
        return columns.take(record)
    except RowError as error:
        return error
    except RecursionError:
        return RowError("a column that is filtered by is nested too deeply", "filter")


def is_array(path: str) -> bool:
    """Whether a file of JSON holds one array: its first character says so."""
    with open_file(path) as stream:
        start = stream.read(_HEAD).removeprefix(_BOM).lstrip()
    return start.startswith(b"[")


def read_array(piece: Piece, columns: Columns) -> Iterator[tuple[Place, Any]]:
    """The values of a file that is one array of JSON objects, which is never whole in memory."""
    with open_file(piece.path) as stream:
        for number, element in enumerate(elements(stream), start=1):
            value = element if isinstance(element, RowError) else json_value(element, columns, "in the array")
            yield Place(piece.path, "object", number), value


_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def elements(stream: BinaryIO) -> Iterator[bytes | RowError]:
    """The bytes of each element of an array. Only brackets, commas and quotes are looked at, so that an element that
    is no JSON is one element still; one of more than `LONGEST` bytes is given as an error.

    Raises:
        EOFError: The file ends before the array does, or goes on behind it.
    """
    buffer, at, depth, inside, long = bytearray(), 0, 0, False, False
    empty = True  # no element stands before the bracket that closes the array
    while chunk := stream.read(_CHUNK):
        buffer += chunk
        while found := (_INSIDE if inside else _OUTSIDE).search(buffer, at):
            at, sign = found.end(), found[0]
            if inside:
                if sign == b"\\":
                    at += 1
                inside = sign == b"\\"
            elif sign == b'"':
                inside = True
            elif sign in b"[{":
                depth += 1
                if depth == 1:
                    del buffer[:at]
                    at = 0
            elif sign != b"," or depth == 1:
                depth -= sign != b","
                if depth == 0 or sign == b",":
                    element = bytes(buffer[: at - 1])
                    if sign == b"," or not (empty and not element.strip()):
                        yield _too_long("object") if long else element
                    empty, long = False, False
                    del buffer[:at]
                    at = 0
                if depth <= 0:
                    _nothing_more(stream, buffer)
                    return
        if not found:
            at = max(at, len(buffer))
        if len(buffer) > LONGEST:
            long = True
            at -= len(buffer)
            buffer.clear()
    raise EOFError("the array has no end; expected `]`")


def _nothing_more(stream: BinaryIO, rest: bytes | bytearray) -> None:
    while not rest or rest.isspace():
        rest = stream.read(_CHUNK)
        if not rest:
            return
    raise EOFError("something stands behind the array; expected its `]` to be the last character")
