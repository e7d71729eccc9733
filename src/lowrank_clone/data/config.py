"""The recipe's `data` section."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator

from ..ranges import Range

_STRICT = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
_Count = Annotated[int, AfterValidator(Range(1, 1e12, whole=True))]


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """One source of documents."""

    path: str
    """File (.txt, .jsonl, .json of one object per line, these .gz, .parquet), folder or glob of these, or Hub name.
    In folders and globs, files of other kinds are left out, and hidden ones are never looked at."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    chat_column: str | None = None
    """Column with a list of {role, content} messages, rendered by the chat template; replaces text_column."""
    special_tokens: bool = False
    """Whether what looks like a special token (`</s>`) is read as one, as in chats that are rendered already; else it
    stays text."""
    weight: Annotated[float, AfterValidator(Range(1e-9, 1e9))] = 1.0
    """Relative number of tokens of this source in the mix; no token is repeated to reach it."""
    max_documents: _Count | None = None
    """Use only the first so many documents."""

    @property
    def column(self) -> str:
        """The column that is read."""
        return self.chat_column or self.text_column


def _as_sources(value: Any) -> Any:
    """`corpus.txt`, or a list of such, is short for sources that have only a path."""
    if isinstance(value, str | dict | SourceConfig):
        value = [value]
    return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


_Sources = Annotated[list[SourceConfig], pydantic.BeforeValidator(_as_sources)]


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
    max_epochs: Annotated[float, AfterValidator(Range(0, 1e9, above=True))] = 100.0
    """Most times that a run may read its text; more is refused, as it is hardly meant. Raise it if it is."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a malformed row: stop, or leave it out and count it."""
    seed: Annotated[int, AfterValidator(Range(0, 2**32 - 1, whole=True))] = 0
    """Decides which documents are held out and the order of the blocks."""
    num_proc: Annotated[int, AfterValidator(Range(1, 256, whole=True))] | None = None
    """Worker processes for reading and tokenising."""
