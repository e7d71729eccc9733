"""The first chats of every source tried on the chat template, before any long work."""

from __future__ import annotations

import itertools
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import keyed_sources, named
from .config import DataConfig, SourceConfig
from .files import find_files
from .readers.documents import Document
from .readers.hub import split_hub
from .readers.parts import file_part
from .readers.reading import read_documents
from .tokenise import Tokeniser

_CHATS = 8
_ROWS = 256  # of which filters may leave out most


def try_templates(config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a chat template that can't be used: it fails, runs away, or does not tell the assistant apart.

    Raises:
        InputError: A chat is refused; with `on_error: skip`, all that were tried are.
    """
    strict = config.on_error == "raise"
    for key, source in keyed_sources(config):
        if source.chat_column is None:
            continue
        with named(key):
            errors = [
                row.error for row in Tokeniser(tokenizer, source, vocab_size).encode(_first_chats(source, strict))
            ]
            refused = [error for error in errors if error is not None]
            if refused and len(refused) == len(errors) > 1:
                raise InputError(f"{refused[0]}; and so are all of its first {len(errors)} chats")
            if refused and (strict or len(errors) == 1):
                raise InputError(refused[0])


def _first_chats(source: SourceConfig, strict: bool) -> list[Document]:
    found = find_files(source.path)
    few = replace(source, max_documents=min(source.max_documents or _ROWS, _ROWS))
    parts = split_hub(few, one=True) if found is None else [file_part(file) for file in found.files[:_CHATS]]
    rows = itertools.chain.from_iterable(read_documents(part, few, strict) for part in parts)
    chats = (row for row in itertools.islice(rows, _ROWS) if row.messages is not None)
    return list(itertools.islice(chats, _CHATS))
