"""The recipe's `data` section."""

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator

from ..errors import InputError
from ..ranges import Range
from .filters import check_filter

_STRICT = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
_Count = Annotated[int, AfterValidator(Range(1, 1e12, whole=True))]


def _whole(value: Any) -> Any:
    """10e9 tokens are meant as an integer, though YAML reads a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _spoken(value: Any) -> Any:
    """true and false stand for parse and text."""
    return {True: "parse", False: "text"}[value] if isinstance(value, bool) else value


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """One source of documents."""

    path: str
    """File (.txt, .md, .jsonl or .json, each also as .gz or .zst, or .parquet), folder or glob of these, or Hub name. A
    .json holds one object per line or one array of objects. In folders and globs, files of other kinds, those about
    the texts (README.md, LICENSE.txt) and folders that are only linked to are left out and named; hidden ones are never
    looked at."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; null is the default branch."""
    text_column: str = "text"
    """Column that holds the text; dots reach into nested ones, as in `document.text`."""
    chat_column: str | None = None
    """Column with a list of messages, {role, content} or {from, value}, rendered by the chat template; replaces
    text_column. Dots reach into nested columns."""
    special_tokens: Annotated[Literal["text", "parse"], BeforeValidator(_spoken)] = "text"
    """Whether what looks like a special token (`</s>`) stays text, or is read as one (parse), as in chats that are
    rendered already."""
    filter: Annotated[dict[str, dict[str, Any]], AfterValidator(check_filter)] = dataclasses.field(default_factory=dict)
    """Rows to keep: `{column: {min: 4}}`, with min, max, equals or in for each column; dots reach into nested ones. A
    row without a value in such a column is left out."""
    weight: Annotated[float, AfterValidator(Range(1e-9, 1e9))] = 1.0
    """Relative number of tokens of this source in the mix, among those without `tokens`."""
    tokens: Annotated[int, BeforeValidator(_whole), AfterValidator(Range(1, 1e15, whole=True))] | None = None
    """Tokens to take of this source in one pass over the mix, to a block; sources without share what they leave of the
    run."""
    repeat: bool | None = None
    """What becomes of a source that is too small for its share or its tokens: true reads it again, as often as that
    needs; false lets the mix end with it; null refuses it where the mix would be less than half of the text, or less
    than the run."""
    max_documents: _Count | None = None
    """Use only the first so many documents."""
    loss_on: Literal["all", "assistant"] = "all"
    """Which tokens of a chat are trained on: all, or what the assistant says."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.weight != 1.0:
            raise InputError(
                f"weight: got {self.weight:g} beside tokens: {self.tokens:,}, expected only one of the two; remove one"
            )
        if self.loss_on == "assistant" and self.chat_column is None:
            raise InputError(
                "loss_on: got assistant without a chat_column, expected a column of messages, as plain text has no "
                "assistant; give chat_column, or set loss_on: all"
            )
        for field in ("text_column", "chat_column"):
            if (column := getattr(self, field)) is not None and "" in column.split("."):
                raise InputError(f"{field}: got {column!r}, expected a column's name, or dotted names as in `a.b`")

    @property
    def column(self) -> str:
        """The column that is read."""
        return self.chat_column or self.text_column


def _as_sources(value: Any) -> Any:
    """`corpus.txt`, or a list of such, is short for sources that have only a path."""
    if isinstance(value, str | dict | SourceConfig):
        value = [value]
    return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


_Sources = Annotated[list[SourceConfig], BeforeValidator(_as_sources)]


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """What to train and validate on."""

    sources: _Sources
    """Where the training documents come from."""
    sequence_length: Annotated[int, AfterValidator(Range(2, 2**24, whole=True))] = 2048
    """Tokens per block."""
    validation: Annotated[float, AfterValidator(Range(0, 0.9, above=True))] | _Sources = 0.01
    """Fraction of each source's tokens to hold out, in whole documents and at least one block; or sources of their
    own."""
    max_validation_blocks: _Count | None = 512
    """At most so many validation blocks; what is held out beyond them is not used at all."""
    packing: Literal["contiguous", "best_fit"] = "contiguous"
    """How documents fill blocks: contiguous cuts them where a block ends and goes on in the next one; best_fit keeps
    documents whole where they fit into a block, and pads what stays free."""
    document_mask: bool = False
    """Whether documents in one block are kept apart: attention stops at their borders, positions begin again, and a
    document's first token is not predicted from another's text."""
    deduplicate: bool | Literal["minhash"] = False
    """Leave out documents that are there twice, in whatever sources: equal ones (true), or also nearly equal ones
    (minhash)."""
    repeat: bool = False
    """Whether a run may read its text more than once, where its length is given in tokens or steps."""
    shards: str | None = None
    """Folder for the tokenised text; null is `lowrank-clone/shards` in the user's cache folder, or what the environment
    variable LRC_CACHE says."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a malformed row: stop, or leave it out and count it."""
    seed: Annotated[int, AfterValidator(Range(0, 2**32 - 1, whole=True))] = 0
    """Decides which documents are held out and the order of the blocks."""
    num_proc: Annotated[int, AfterValidator(Range(1, 256, whole=True))] | None = None
    """Worker processes for reading and tokenising."""
