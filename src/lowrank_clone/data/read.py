"""Documents as rows of a table, for `prepare`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .config import SourceConfig
from .files import find_files, version_of
from .readers.documents import HubPiece, Part, Piece
from .readers.hub import hub_info, split_hub
from .readers.opening import error_reason as error_reason
from .readers.reading import read_documents as read_part

DOCUMENTS_PER_BATCH = 64  # documents per tokenizer call; bounds memory when documents are long


def find_origins(source: SourceConfig) -> list[tuple[str, str]]:
    """`(path, version)` of each origin; the version makes the cache notice an edited file or a new Hub revision."""
    found = find_files(source.path)
    if found is None:
        return [(source.path, str(hub_info(source).revision))]
    return [(file, version_of(file)) for file in found.files]


def read_documents(origins: Sequence[tuple[str, str]], source: SourceConfig, strict: bool) -> Iterator[dict[str, Any]]:
    """One row for each document: `text`, for a chat its messages as JSON, or `error` and whether it is `fatal`."""
    hub = find_files(source.path) is None
    pieces: list[Piece | HubPiece] = [Piece(path) for path, _ in origins]
    if hub:
        pieces = [piece for part in split_hub(source, one=True) for piece in part.pieces]
    for document in read_part(Part(tuple(pieces), 0), source, strict):
        text = json.dumps(document.messages, default=str) if document.messages is not None else document.text
        if document.dropped is None or document.dropped == "blank":
            text = "" if document.dropped else text
            yield {"text": text, "error": document.error, "fatal": document.fatal}
