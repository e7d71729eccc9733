"""Plain text: a file of up to 64 KiB is one document, a longer one is cut at paragraphs.

Where it is cut depends on the bytes around each multiple of 64 KiB alone. So a reader that begins in the middle of a
file finds the same documents as one that begins at its start.
"""

from collections.abc import Iterator
from typing import BinaryIO

from .documents import Piece, Place, RowError
from .opening import open_file

CHUNK = 64 * 1024  # bytes: there is one cut in the half chunk before each multiple, and none elsewhere
_BOM = b"\xef\xbb\xbf"
# Blank lines first, then lines, then words.
_MARKS = ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",))


def read_text(piece: Piece) -> Iterator[tuple[Place, str | RowError]]:
    """The documents of a text file; `start` and `stop` are multiples of `CHUNK`, or the file's end."""
    with open_file(piece.path) as stream:
        for start, chunk in _chunks(stream, piece.start, piece.stop):
            place = Place(piece.path, "byte", start) if start else Place(piece.path)
            yield place, _decoded(chunk, start)


def _chunks(stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each document whose chunk begins in `start` to `stop`."""
    chunk, half = CHUNK, CHUNK // 2
    buffer, offset = b"", 0  # the bytes that are read and not given yet, and where they stand in the file
    if start:
        stream.seek(start - half)
        window = stream.read(half + 1)
        cut = _border(window, 0)
        buffer, offset = window[cut:], start - half + cut
    following = start + chunk
    while True:
        wanted = following + 1 - offset - len(buffer)  # one byte beyond, which tells a character's end and the file's
        buffer += stream.read(wanted)
        if offset + len(buffer) <= following:
            if buffer:
                yield offset, buffer
            return
        cut = _border(buffer, following - half - offset)
        yield offset, buffer[:cut]
        buffer, offset = buffer[cut:], offset + cut
        if stop is not None and following >= stop:
            return
        following += chunk


def _border(window: bytes, low: int) -> int:
    """Where to cut: after the last blank line between `low` and the last byte; else after a line, word or character."""
    last = len(window) - 1
    for marks in _MARKS:
        cut = max((place + len(mark) for mark in marks if (place := window.rfind(mark, low, last)) >= 0), default=0)
        if cut:
            return cut
    while last > low and window[last] & 0xC0 == 0x80:  # inside a character
        last -= 1
    return last


def _decoded(chunk: bytes, start: int) -> str | RowError:
    try:
        text = (chunk if start else chunk.removeprefix(_BOM)).decode()
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 ({error.reason} at byte {start + error.start}); expected UTF-8 text", "path")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
