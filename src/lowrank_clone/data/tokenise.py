"""Documents to token ids: `[bos] ids eos`, with bos only where the tokenizer itself adds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import xxhash
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import InputError
from .config import SourceConfig
from .long_texts import SEGMENT, segments
from .render import Rendered, Renderer
from .tokenizer import bos_ids, check_ids, is_plain, special_names

_CHARACTERS = 4 * 2**20  # of one call of the tokenizer; a longer document is a call of its own
_NO_IDS = np.empty(0, np.uint16)


class Document(Protocol):
    """What a reader gives: a text or a chat, or the error for which there is none."""

    @property
    def text(self) -> str | None:
        """The text, of a source of texts."""

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The messages, of a source of chats."""

    @property
    def error(self) -> str | None:
        """Why there is neither."""

    @property
    def place(self) -> object:
        """Where it stands, for errors; its text is made when it is asked for."""


@dataclass(frozen=True)
class Encoded:
    """A document as token ids; without ids it is blank, left out by its reader, or has an error."""

    ids: np.ndarray
    """`[tokens]` uint16 where the vocabulary is below 65,536, else uint32: `[bos] ids eos`."""
    hash: int = 0
    """xxh3_64 of the document's UTF-8 text; of a chat, of the rendered text."""
    masked: np.ndarray | None = None
    """`[spans, 2]` int64, half-open spans of tokens that are not the assistant's; None without loss_on: assistant."""
    error: str | None = None
    """Why the row can't be used."""
    spelt: bool = False
    """Whether special tokens stand in it as ordinary text."""


class Tokeniser:
    """Makes token ids of documents of one source. Picklable.

    A document is `[bos] ids eos`: bos only where the tokenizer itself puts it before a text, and neither bos nor eos
    twice, whatever a chat template or the text writes. What looks like a special token is read as one in chats, whose
    template writes them, and where the source says `special_tokens: parse`; elsewhere it stays text.

    Args:
        tokenizer: The teacher's.
        source: Whose documents these are.
        vocab_size: Rows of the model's embedding.

    Raises:
        InputError: `loss_on: assistant` needs to know which characters a token stands for, and the tokenizer does not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: SourceConfig, vocab_size: int) -> None:
        self._tokenizer, self._source, self._vocab_size = tokenizer, source, vocab_size
        self.dtype = np.dtype(np.uint16 if vocab_size < 2**16 else np.uint32)
        self._special = source.chat_column is not None or source.special_tokens == "parse"
        self._spans = source.loss_on == "assistant"
        if self._spans and not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(
                f"loss_on: got assistant, and `{type(tokenizer).__name__}` does not say which characters a token "
                "stands for; expected a tokenizer with a tokenizer.json; give one, or set loss_on: all"
            )
        self._bos, self._eos = bos_ids(tokenizer), int(tokenizer.eos_token_id)
        self._names = special_names(tokenizer)
        self._renderer = Renderer(tokenizer, spans=self._spans) if source.chat_column else None

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """One result for each document, in their order.

        Raises:
            InputError: An id is beyond the model's vocabulary.
        """
        texts = self._texts(documents)
        results = [Encoded(_NO_IDS, error=text.error) for text in texts]
        filled = [i for i, text in enumerate(texts) if text.text and text.text.strip()]
        for group in _groups(filled, texts):
            rows = self._token_rows([texts[i].text or "" for i in group])
            for i, (ids, ends) in zip(group, rows, strict=True):
                results[i] = self._encoded(texts[i], ids, ends, documents[i].place)
        return results

    def _texts(self, documents: Sequence[Document]) -> list[Rendered]:
        texts = [Rendered(document.text, error=document.error) for document in documents]
        if self._renderer is None:
            return texts
        chats = [i for i, document in enumerate(documents) if document.messages is not None and not document.error]
        for i, rendered in zip(chats, self._renderer.render([documents[i].messages or [] for i in chats]), strict=True):
            texts[i] = rendered
            if rendered.error:
                texts[i] = Rendered(None, error=refusal(documents[i].place, rendered.error))
        return texts

    def _token_rows(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Ids `[tokens]` of each text, and `[tokens, 2]` the characters of each where spans are asked for."""
        if not is_plain(self._tokenizer):
            encoded = self._tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=self._spans,
                split_special_tokens=not self._special,
                verbose=False,  # of documents longer than the model takes, which are cut into blocks
            )
            for i, ids in enumerate(encoded["input_ids"]):
                places = np.array(encoded["offset_mapping"][i]) if self._spans else None
                yield np.array(ids, np.int64), places
            return
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not self._special
        if self._spans:
            for encoding in backend.encode_batch(texts, add_special_tokens=False):
                yield np.array(encoding.ids, np.int64), np.array(encoding.offsets)
        elif len(texts) == 1 and len(texts[0]) > 2 * SEGMENT:
            parts = segments(texts[0], partial(_ids, backend))
            yield np.concatenate([np.array(next(_ids(backend, [part])), np.int64) for part in parts]), None
        else:
            for ids in _ids(backend, texts):
                yield np.array(ids, np.int64), None

    def _encoded(self, text: Rendered, ids: np.ndarray, places: np.ndarray | None, place: object) -> Encoded:
        assert text.text is not None
        if not len(ids):
            return Encoded(_NO_IDS)
        check_ids(ids, self._tokenizer, self._vocab_size)
        names = [] if self._special or self._names is None else self._names.findall(text.text)
        if names and (lost := self._not_kept(names, ids)):
            return Encoded(
                _NO_IDS,
                error=f"{self._source.column}: {place}: it spells `{lost}` out, which this tokenizer can't keep as "
                "text; expected text without it; mend the row, set special_tokens: parse, or set on_error: skip",
            )
        said = None if places is None else _said(places, text.spans)
        first, last, opened, ended = self._borders(ids)
        start, end = [] if opened else self._bos, [] if ended else [self._eos]
        whole = np.concatenate([start, ids[first:last], end]).astype(self.dtype)
        masked = None
        if said is not None:
            # The end is the assistant's where it had the last word and the template writes no end of its own.
            said = said[first:last]
            masked = _runs(~np.concatenate([np.zeros(len(start), bool), said, said[-1:][: len(end)]]))
        return Encoded(whole, xxhash.xxh3_64_intdigest(text.text.encode()), masked, spelt=bool(names))

    def _borders(self, ids: np.ndarray) -> tuple[int, int, bool, bool]:
        """The ids to keep, `[first, last)`, and whether they begin with bos and end with eos by themselves."""
        first, last = 0, len(ids)
        bos, eos = self._tokenizer.bos_token_id, self._eos
        while last - first > 1 and ids[first] == bos == ids[first + 1]:
            first += 1
        while last - first > 1 and ids[last - 1] == eos == ids[last - 2]:
            last -= 1
        ends = np.flatnonzero(ids[max(first, last - 8) : last] == eos)
        tail = ids[max(first, last - 8) + ends[-1] + 1 : last] if len(ends) else None
        ended = (
            tail is not None and not str(self._tokenizer.decode(tail.tolist())).strip()
        )  # templates may add a newline
        return first, last, bool(ids[first] == bos), ended

    def _not_kept(self, names: list[str], ids: np.ndarray) -> str | None:
        """The first of these special tokens' names that became the token itself."""
        for name in dict.fromkeys(names):
            token = self._tokenizer.convert_tokens_to_ids(name)
            if token is not None and token != self._tokenizer.unk_token_id and (ids == token).any():
                return name
        return None


def _ids(backend: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Ids of each text. `encode_batch_fast`, which keeps no places of tokens, takes longer in one thread."""
    return (encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False))


def refusal(place: object, reason: str) -> str:
    """Why a chat can't be used, as the error of its row."""
    return (
        f"chat_column: {place}: the chat template refuses it ({reason}); mend the row or the template, or set "
        "on_error: skip"
    )


def _groups(indices: list[int], texts: list[Rendered]) -> Iterator[list[int]]:
    """The texts in groups of bounded size, since a tokenizer needs some hundred bytes a token while it works."""
    group: list[int] = []
    size = 0
    for i in indices:
        length = len(texts[i].text or "")
        if group and size + length > _CHARACTERS:
            yield group
            group, size = [], 0
        group.append(i)
        size += length
    if group:
        yield group


def _said(places: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """`[tokens]` bool: tokens with a character inside one of the half-open spans.

    Args:
        places: `[tokens, 2]` characters of each token. Tokenizers leave spaces before a word out of them, so a token
            begins where the one before it ended.
        spans: In order, none overlapping.
    """
    if not spans or not len(places):
        return np.zeros(len(places), bool)
    starts, ends = np.array(spans).T
    begin = np.minimum(places[:, 0], np.concatenate([[0], places[:-1, 1]]))
    nearest = np.searchsorted(ends, begin, side="right")
    return (nearest < len(ends)) & (starts[np.minimum(nearest, len(ends) - 1)] < places[:, 1])


def _runs(mask: np.ndarray) -> np.ndarray:
    """`[runs, 2]` half-open stretches where a mask `[tokens]` is True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)
