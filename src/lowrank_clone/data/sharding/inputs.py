"""What a part is read from, so that an edited file is noticed and nothing else is made again."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import xxhash

from ..readers.documents import HubPiece, Part, Piece
from .records import checksum

_MARGIN = 256 * 1024  # bytes around a stretch of a file that decide where its first and last documents begin
_LINE = 1 << 20


@dataclass(frozen=True)
class Stamps:
    """digest: Of names, sizes and times of a part's files. newest: The last change to one of them, in nanoseconds."""

    digest: str
    newest: int


def stamps_of(part: Part) -> Stamps:
    """What changes when a file is edited. The time of the last change to the inode can't be set back, as mtime can.

    Raises:
        OSError: A file can't be found.
    """
    digest, newest = xxhash.xxh3_128(), 0
    for path in part.files:
        found = os.stat(path)
        state = f"{path}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n"
        digest.update(state.encode("utf-8", "surrogateescape"))
        newest = max(newest, found.st_ctime_ns)
    return Stamps(digest.hexdigest(), newest)


def content_of(part: Part) -> str:
    """Digest of the bytes that a part's documents are made of; empty for the Hub.

    Raises:
        OSError: A file can't be read.
    """
    digest = xxhash.xxh3_128()
    for piece in part.pieces:
        if isinstance(piece, Piece):
            digest.update(_piece(piece).encode())
    return digest.hexdigest() if part.files else ""


def part_key(part: Part, limit: int | None) -> str:
    """Digest of which stretches of which files a part is."""
    pieces = [
        (piece.path, piece.start, piece.stop, *([piece.count] if isinstance(piece, HubPiece) else []))
        for piece in part.pieces
    ]
    return xxhash.xxh3_64_hexdigest(repr((pieces, limit)).encode("utf-8", "surrogateescape"))


def newest_file(part: Part) -> str:
    """The file of a part that was changed last."""
    return max(part.files, key=lambda path: os.stat(path).st_ctime_ns)


def _piece(piece: Piece) -> str:
    if piece.stop is None:
        return checksum(piece.path)
    if piece.path.lower().endswith(".parquet"):  # stretches are of row groups, whose bytes only the file's end names
        found = os.stat(piece.path)
        return _whole(piece.path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    stop = max(piece.stop + _MARGIN, _line_end(piece.path, piece.stop))
    return checksum(piece.path, max(0, piece.start - _MARGIN), stop)


@functools.lru_cache(maxsize=4096)
def _whole(path: str, *_: int) -> str:
    """Of a whole file, read once by each process however many parts of it that makes."""
    return checksum(path)


def _line_end(path: str, position: int) -> int:
    """Where the line ends in which a stretch does: its last document may reach that far."""
    with open(path, "rb") as file:
        file.seek(max(0, position - 1))
        while chunk := file.read(_LINE):
            if (end := chunk.find(b"\n")) >= 0:
                return file.tell() - len(chunk) + end + 1
        return file.tell()
