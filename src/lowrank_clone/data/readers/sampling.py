"""The first documents of a file, and the share of it that they are."""

import itertools
import os
from dataclasses import replace

from ..config import SourceConfig
from ..files import extension, format_of, is_packed
from .documents import Document, RowError
from .json_files import LONGEST, elements, is_array
from .opening import open_file, open_raw, readable, unpacked
from .parts import file_part
from .reading import read_documents
from .tables import open_table

_BLOCK = 2**22  # bytes; well above what decoders read ahead


def sample_file(path: str, source: SourceConfig, size: int, rows: int) -> tuple[float, list[Document]]:
    """(the share that was looked into, the documents in it): the first `size` bytes of a file, unpacked, or of a
    .parquet file the first `rows` rows; at least one document.

    Raises:
        InputError: The file is damaged.
    """
    with readable(path):
        return _sample(path, source, size, rows)


def _sample(path: str, source: SourceConfig, size: int, rows: int) -> tuple[float, list[Document]]:
    documents = read_documents(file_part(path), replace(source, max_documents=None), strict=False)
    kind = format_of(path)
    if kind == "table":
        with open_table(path) as table:
            count = table.metadata.num_rows
        taken = list(itertools.islice(documents, rows))
        return (len(taken) / count if count else 0.0), taken
    whole = unpacked_size(path)
    if kind == "text":
        taken, seen = [], 0
        for document in documents:
            if document.place.number >= size:
                seen = document.place.number
                break
            taken.append(document)
        else:
            seen = int(whole)
    else:
        last, seen = _json_extent(path, size)
        taken = list(itertools.takewhile(lambda document: document.place.number <= last, documents))
    return (min(seen / whole, 1.0) if whole else 0.0), taken


def _json_extent(path: str, size: int) -> tuple[int, int]:
    """(lines or objects, their bytes) of the first `size` bytes of a file of JSON, and of the one that goes beyond."""
    array = extension(path) == ".json" and is_array(path)
    count = seen = 0
    with open_file(path) as stream:
        for one in elements(stream) if array else iter(lambda: stream.readline(LONGEST), b""):
            count, seen = count + 1, seen + (LONGEST if isinstance(one, RowError) else len(one) + array)
            if seen >= size:
                break
    return count, seen


def unpacked_size(path: str) -> float:
    """Bytes of a file's text; of a packed one by how far its first part unpacks.

    Raises:
        InputError: The file is damaged.
    """
    with readable(path):
        size = os.path.getsize(path)
    if not is_packed(path) or size == 0:
        return size
    with readable(path), open_raw(path) as raw, unpacked(raw, path) as stream:
        count = len(stream.read(_BLOCK))
        if (place := raw.tell()) < size:
            return size * count / place
        while piece := stream.read(_BLOCK):  # the rest is in memory already
            count += len(piece)
    return count
