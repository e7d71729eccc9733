"""A source, cut into parts by its files and their sizes alone, never by how many workers read them."""

import os
from collections.abc import Iterator

from ..config import SourceConfig
from ..files import find_files, format_of, is_packed
from .documents import Part, Piece
from .hub import split_hub
from .json_files import is_array
from .opening import readable
from .tables import open_table
from .text_files import CHUNK

BYTES_PER_PART = 64 * 2**20


def split_source(source: SourceConfig, bytes_per_part: int = BYTES_PER_PART) -> list[Part]:
    """The parts of a source: read one after the other they give its documents in order, each once.

    Lines of JSON and text are cut every `bytes_per_part` bytes, at the next border of a line or document; .parquet
    files between row groups; packed files and arrays not at all. Small files are put together. A file that grows keeps
    its first parts. A part may hold no document, where one document is longer than a part. A source with
    `max_documents` is a single part, as the first so many can't be known otherwise.

    Raises:
        InputError: It names the field `path`: nothing readable is there, or a file is damaged.
    """
    found = find_files(source.path)
    if found is None:
        return split_hub(source, one=source.max_documents is not None)
    parts: list[Part] = []
    group: list[Piece] = []
    size = 0

    def close() -> None:
        nonlocal group, size
        if group:
            parts.append(Part(tuple(group), size))
        group, size = [], 0

    one = source.max_documents is not None
    for file in found.files:
        with readable(file):
            length = os.stat(file).st_size
            pieces = list(_pieces(file, length, length if one else bytes_per_part))
        if len(pieces) > 1:
            close()
            parts += [Part((piece,), bytes_of) for piece, bytes_of in pieces]
            continue
        for piece, bytes_of in pieces:
            if size + bytes_of > bytes_per_part and not one:
                close()
            group.append(piece)
            size += bytes_of
    close()
    return parts


def file_part(file: str) -> Part:
    """A whole file as one part; without a piece if it is empty.

    Raises:
        InputError: It can't be looked at.
    """
    with readable(file):
        length = os.stat(file).st_size
        return Part(tuple(piece for piece, _ in _pieces(file, length, length)), length)


def _pieces(file: str, length: int, most: int) -> Iterator[tuple[Piece, int]]:
    """(piece, its bytes) of one file; none of an empty one, unless a file of its kind can't be empty."""
    kind = format_of(file)
    if length == 0 and kind != "table" and not is_packed(file):
        return
    if is_packed(file) or (length <= most and kind == "table"):
        yield Piece(file), length
    elif kind == "table":
        yield from _row_groups(file, length, most)
    elif length <= most or (file.lower().endswith(".json") and is_array(file)):
        yield Piece(file, 0, length), length
    else:
        step = -(-most // CHUNK) * CHUNK if kind == "text" else most
        for start in range(0, length, step):
            stop = min(start + step, length)
            yield Piece(file, start, stop), stop - start


def _row_groups(file: str, length: int, most: int) -> Iterator[tuple[Piece, int]]:
    """Stretches of row groups, each of up to `most` bytes on disk or of a single one."""
    with open_table(file) as table:
        # Asking a damaged file for one of its columns' sizes ends the process, so that the groups' are scaled.
        groups = [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]
    sizes = [length * size // max(1, sum(groups)) for size in groups]
    start = taken = 0
    for i, size in enumerate(sizes):
        if i > start and taken + size > most:
            yield Piece(file, start, i), taken
            start, taken = i, 0
        taken += size
    yield Piece(file, start, len(sizes)), taken or length
