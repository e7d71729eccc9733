"""What became of the data: counts per source and side."""

from dataclasses import dataclass, field
from typing import Literal

from ..errors import count_of

Side = Literal["train", "validation"]


@dataclass(frozen=True)
class SourceReport:
    """One source on one side; `tokens + bos + padding == packed_blocks * sequence_length`.

    What was left out while reading is counted once: under train, for a source that serves both sides.
    """

    path: str
    part: Side
    documents: int
    tokens: int
    blocks: int
    """That one pass takes; more than `packed_blocks` where the source is read again."""
    packed_blocks: int
    """That all its documents on this side make."""
    share: float
    """Of the tokens of its side that one pass takes."""
    padding: int = 0
    """Places without a token, in all packed blocks."""
    bos: int = 0
    """Places with a bos that is put before what follows a cut."""
    equal: int = 0
    """Documents left out as equal to others (`deduplicate`)."""
    elsewhere: int = 0
    """Documents left out as they are in a source for validation too."""
    skipped: int = 0
    """Malformed rows."""
    blank: int = 0
    """Rows without text."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that a filter left out, by reason."""
    first_skipped: str | None = None
    spelt: int = 0
    """Documents in which special tokens stand as text."""
    other_files: tuple[str, ...] = ()
    """Of kinds that are not read."""
    licence: str | None = None
    """Of a Hub dataset, as its card says."""

    @property
    def unused_blocks(self) -> int:
        """Blocks that no pass takes: left out by the mix, or beyond max_validation_blocks."""
        return max(0, self.packed_blocks - self.blocks)


@dataclass(frozen=True)
class DataReport:
    """Counts per source and side: training sources first, in the order of the configuration."""

    sources: tuple[SourceReport, ...]
    sequence_length: int
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line per source and side, and one more where something was left out or may be meant otherwise."""
        lines = []
        for s in self.sources:
            name = f"{s.part} {s.path}"
            lines.append(
                f"{name}: {count_of(s.documents, 'document')}, {count_of(s.tokens, 'token')}, "
                f"{count_of(s.blocks, 'block')} of {self.sequence_length} ({s.share:.1%} of the mix), "
                f"{count_of(s.unused_blocks, 'block')} unused, {count_of(s.padding, 'place')} of padding, "
                f"{count_of(s.blank, 'blank row')}"
            )
            for reason, count in s.left_out.items():
                lines.append(f"{name}: {count_of(count, 'row')} left out, {reason}")
            if s.equal:
                lines.append(f"{name}: {count_of(s.equal, 'document')} left out: an equal one is there already")
            if s.elsewhere:
                lines.append(f"{name}: {count_of(s.elsewhere, 'document')} left out: data.validation has the same")
            if s.skipped:
                lines.append(f"{name}: {count_of(s.skipped, 'malformed row')} skipped, first: {s.first_skipped}")
            if s.spelt:
                lines.append(
                    f"{name}: {count_of(s.spelt, 'document')} with special tokens spelt out, which stay text; "
                    "special_tokens: parse in the source reads them as tokens"
                )
            if s.other_files:
                lines.append(
                    f"{name}: not read: {count_of(len(s.other_files), 'file')} of other kinds, first: "
                    f"{s.other_files[0]}"
                )
        return [*lines, *self.remarks]

    def __str__(self) -> str:
        return "\n".join(self.lines())
