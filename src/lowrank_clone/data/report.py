"""What became of the data: counts per source and side."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["train", "validation"]


@dataclass(frozen=True)
class SourceReport:
    """One source on one side; `tokens == (blocks + unused_blocks) * sequence_length + dropped_tokens`."""

    path: str
    part: Side
    documents: int
    tokens: int
    blocks: int
    unused_blocks: int  # complete, but left out by the weights of the mix or by max_validation_blocks
    dropped_tokens: int  # the remainder that fills no block
    skipped: int  # malformed rows; of a source that serves both sides, counted under train
    blank: int  # rows without text; counted likewise
    first_skipped: str | None
    spelt: int = 0  # documents in which special tokens stand as text; counted likewise
    other_files: tuple[str, ...] = ()  # of kinds that are not read; counted likewise


@dataclass(frozen=True)
class DataReport:
    """Counts per source and side: training sources first, in the order of the configuration."""

    sources: tuple[SourceReport, ...]
    sequence_length: int

    def lines(self) -> list[str]:
        """One line per source and side, and one more where something was skipped or may be meant otherwise."""
        lines = []
        for s in self.sources:
            share = s.blocks / sum(other.blocks for other in self.sources if other.part == s.part)
            lines.append(
                f"{s.part} {s.path}: {s.documents:,} documents, {s.tokens:,} tokens, {s.blocks:,} blocks of "
                f"{self.sequence_length} ({share:.1%} of the mix), {s.unused_blocks:,} blocks unused, "
                f"{s.dropped_tokens:,} tokens dropped, {s.blank:,} blank rows"
            )
            if s.skipped:
                lines.append(f"{s.part} {s.path}: {s.skipped:,} malformed rows skipped, first: {s.first_skipped}")
            if s.spelt:
                lines.append(
                    f"{s.part} {s.path}: {s.spelt:,} documents spell special tokens out, which stay text; "
                    "special_tokens: parse in the source reads them as tokens"
                )
            if s.other_files:
                lines.append(
                    f"{s.part} {s.path}: {len(s.other_files):,} files of other kinds are not read, first: "
                    f"{s.other_files[0]}"
                )
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
