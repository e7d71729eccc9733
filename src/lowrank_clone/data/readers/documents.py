"""What readers give: documents with the place that they come from, and the parts that a source is cut into."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..files import version_of

_COUNTED = 2**20  # bytes read at a time while lines are counted


class Place(NamedTuple):
    """Where a document comes from; its text, `corpus.jsonl line 7`, is made when somebody asks for it."""

    path: str
    unit: str = ""
    """line, row, object or byte; empty for a whole file."""
    number: int = 0
    """Which one, from 1 for lines and objects and from 0 for rows and bytes, counted from `after`."""
    after: int = 0
    """Byte of the file at which the count of lines begins, so that no reader has to read what stands before."""

    def __str__(self) -> str:
        if not self.unit:
            return self.path
        before = _lines_before(self.path, self.after, version_of(self.path)) if self.after else 0
        return f"{self.path} {self.unit} {before + self.number}"


@functools.lru_cache(maxsize=16)
def _lines_before(path: str, stop: int, version: str) -> int:
    """Line breaks before a byte of a file; counted again when the file is another version."""
    count = 0
    with open(path, "rb") as file:
        while stop > 0 and (piece := file.read(min(stop, _COUNTED))):
            count += piece.count(b"\n")
            stop -= len(piece)
    return count


class Document(NamedTuple):
    """One document: exactly one of `text`, `messages`, `error` and `dropped` is set."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    """A chat: dicts with `role` and `content`, and what else the source has (tool_calls, name)."""
    error: str | None = None
    """What is wrong with the row, from the field of the source that has to be mended."""
    fatal: bool = False
    """Whether nothing more can be read of this part, whatever `on_error` says."""
    place: Place = Place("")
    dropped: str | None = None
    """Why a good row is left out: `blank`, or `filter` and the column."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a file: bytes, or the row groups of a .parquet file, from `start` to before `stop`."""

    path: str
    start: int = 0
    stop: int | None = None
    """None is the file's end; packed files are never cut."""


@dataclass(frozen=True)
class HubPiece:
    """Some of the files of a Hub dataset: those from `start` to before `stop` of `count` in all."""

    path: str
    start: int
    stop: int
    count: int
    revision: str | None
    """The commit, so that every part is read of the same one; None where the Hub can't be asked."""


@dataclass(frozen=True)
class Part:
    """What one worker reads in one go; picklable, and the same for the same files and their sizes."""

    pieces: tuple[Piece | HubPiece, ...]
    size: int
    """Bytes on disk, packed ones for packed files; 0 where it is not known, on the Hub."""

    @property
    def files(self) -> tuple[str, ...]:
        """The local files that it reads, each once; none for a Hub dataset."""
        return tuple(dict.fromkeys(piece.path for piece in self.pieces if isinstance(piece, Piece)))


class RowError(ValueError):
    """What is wrong with one row, and the field of the source that it speaks of; None is that of the column."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Dropped(NamedTuple):
    """A good row that is left out, and why."""

    reason: str
