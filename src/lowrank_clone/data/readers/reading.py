"""A part of a source, document by document."""

from collections.abc import Iterator
from typing import Any

from ...errors import InputError, one_line
from ..chats import chat_messages, check_text
from ..config import SourceConfig
from ..files import Format, extension, format_of
from .columns import Columns
from .documents import Document, Dropped, HubPiece, Part, Piece, Place, RowError
from .hub import read_hub
from .json_files import is_array, read_array, read_lines
from .opening import UNREADABLE, unreadable
from .tables import read_table
from .text_files import read_text

LONGEST = 64 * 2**20  # characters of a document: a tokenizer needs over a hundred bytes of memory for each
ADVICE = "; mend the row or the configuration, or set on_error: skip"


def read_documents(part: Part, source: SourceConfig, strict: bool) -> Iterator[Document]:
    """Every document of a part in order, bad rows and those that are left out too.

    An unreadable file and, with `strict`, the first bad row is the last one. Errors are given, not raised: they are
    counted where `on_error` is skip, and between processes an exception's cause is lost.

    Args:
        source: What the part was cut from; with `max_documents`, reading ends after so many that are kept.
    """
    columns, kept = Columns(source), 0
    for piece in part.pieces:
        kind = format_of(piece.path) if isinstance(piece, Piece) else "table"
        field = "path" if kind == "text" else columns.field
        try:
            for place, value in _read_piece(piece, source, columns):
                document = _document(place, value, source, field, kind)
                yield document
                if document.error is not None:
                    if strict:
                        return
                elif document.dropped is None:
                    kept += 1
                    if kept == source.max_documents:
                        return
        except (InputError, RowError, *UNREADABLE) as error:
            yield Document(error=one_line(_fatal(piece.path, error), 1000), fatal=True, place=Place(piece.path))
            return


def _read_piece(piece: Piece | HubPiece, source: SourceConfig, columns: Columns) -> Iterator[tuple[Place, Any]]:
    if isinstance(piece, HubPiece):
        return read_hub(piece, source, columns)
    kind = format_of(piece.path)
    if kind == "table":
        return read_table(piece, columns)
    if kind == "text":
        if source.filter or source.chat_column is not None:
            field = "filter" if source.filter else "chat_column"
            raise RowError("plain text has no columns; expected .jsonl, .json or .parquet", field)
        return read_text(piece)
    array = extension(piece.path) == ".json" and piece.start == 0 and is_array(piece.path)
    return read_array(piece, columns) if array else read_lines(piece, columns)


def _fatal(path: str, error: Exception) -> str:
    if isinstance(error, RowError):
        return f"{error.field}: {path}: {error}; mend the file or the configuration"
    return str(error) if isinstance(error, InputError) else unreadable(path, error)


def _document(place: Place, value: Any, source: SourceConfig, field: str, kind: Format) -> Document:
    if isinstance(value, Dropped):
        return Document(dropped=value.reason, place=place)
    try:
        if isinstance(value, RowError):
            field = value.field or field
            raise value
        if source.chat_column is not None:
            return Document(messages=chat_messages(value, filled=kind == "table"), place=place)
        if not isinstance(value, str):
            raise RowError(f"the text is of type {type(value).__name__}; expected a string")
        if not value or value.isspace():
            return Document(dropped="blank", place=place)
        if len(value) > LONGEST:
            raise RowError(
                f"the text has {len(value):,} characters; expected at most {LONGEST:,}, or several documents"
            )
        check_text(value)
        return Document(text=value, place=place)
    except (ValueError, RecursionError) as error:
        return Document(error=one_line(f"{field}: {place}: {error}", 1000) + ADVICE, place=place)
