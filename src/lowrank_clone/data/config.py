"""The recipe's `data` section."""

from typing import Annotated, Any, Literal

import pydantic

_STRICT = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """One source of documents."""

    path: str
    """File (.txt, .jsonl, .json of one object per line, these .gz, .parquet), folder or glob of these, or Hub name."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    chat_column: str | None = None
    """Column with a list of {role, content} messages, rendered by the chat template; replaces text_column."""
    weight: float = 1.0
    """Relative number of tokens of this source in the mix; no token is repeated to reach it."""
    max_documents: int | None = None
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
    sequence_length: int = 2048
    """Tokens per block."""
    validation: float | _Sources = 0.01
    """Fraction of each source's documents to hold out, or sources of their own."""
    max_validation_blocks: int | None = 512
    """At most so many validation blocks; what is held out beyond them is not used at all."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a malformed row: stop, or leave it out and count it."""
    seed: int = 0
    """Decides which documents are held out and the order of the blocks."""
    num_proc: int | None = None
    """Worker processes for reading and tokenising."""
