"""Packed blocks as the rows of a data set, each read from the shards when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
import torch
from torch import Tensor

from .packing import Packing
from .shards import TokenSource

IGNORED = -100
"""The label of a token that is not learned from."""


class PackedBlocks(Sequence[dict[str, Tensor]], torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of int64 tensors `[length]`, the same whenever and in whatever process they are read. Picklable.

        input_ids        token ids
        labels           the ids, and -100 where none is learned; only where there is such a token
        attention_mask   1 for a token and 0 for padding at the end; only where there is padding
        position_ids     begin again with every document and with padding; only with `document_mask`

    Args:
        parts: The source and the packing of each part.
        order: `[rows]` int64, the block of each row: blocks are numbered through all parts, in order.
        length: Tokens of a block.
        document_mask: Whether documents in a block are kept apart.
        bos: What is put before a piece that begins inside a document; None where the tokenizer puts nothing there.
        pad_id: What stands in padding, which nothing learns from.
    """

    def __init__(
        self,
        parts: Sequence[tuple[TokenSource, Packing]],
        order: np.ndarray,
        *,
        length: int,
        document_mask: bool = False,
        bos: int | None = None,
        pad_id: int = 0,
    ) -> None:
        self.parts, self.order, self.length = list(parts), order, length
        self.document_mask, self.bos, self.pad_id = document_mask, bos, pad_id
        self._first = np.cumsum([0, *(len(packing) for _, packing in parts)])

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> PackedBlocks: ...
    def __getitem__(self, index: Any) -> dict[str, Tensor] | PackedBlocks:
        """One row, or some rows as another data set."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        block = int(self.order[index])
        part = int(np.searchsorted(self._first, block, side="right")) - 1
        source, packing = self.parts[part]
        return self._row(source, packing, block - int(self._first[part]))

    def select(self, rows: Sequence[int] | np.ndarray | range) -> PackedBlocks:
        """The same blocks in other rows."""
        return PackedBlocks(
            self.parts,
            self.order[np.asarray(rows, np.int64)],
            length=self.length,
            document_mask=self.document_mask,
            bos=self.bos,
            pad_id=self.pad_id,
        )

    def _row(self, source: TokenSource, packing: Packing, block: int) -> dict[str, Tensor]:
        ids = np.full(self.length, self.pad_id, np.int64)
        left_out = np.ones(self.length, bool)
        begins = np.zeros(self.length, bool)  # of documents, of pieces of them, and of padding
        at = 0
        for piece in packing.pieces(block):
            begins[at] = True
            if piece.continued and self.bos is not None:
                ids[at] = self.bos  # left out: in its text no bos stands here
                at += 1
            place = slice(at, at + piece.stop - piece.start)
            ids[place] = source.read(piece.start, piece.stop)
            left_out[place] = source.masked(piece.start, piece.stop)
            left_out[at] |= piece.continued and at > 0  # what stands before it is not what stood there in its text
            if self.document_mask and packing.joins:
                begins[source.document_starts(piece.start + 1, piece.stop) - piece.start + at] = True
            at = place.stop
        row = {"input_ids": ids}
        if left_out.any():
            row["labels"] = np.where(left_out, IGNORED, ids)
        if at < self.length:
            row["attention_mask"] = (np.arange(self.length) < at).astype(np.int64)
            begins[at] = True
        if self.document_mask:
            places = np.arange(self.length)
            row["position_ids"] = places - np.maximum.accumulate(np.where(begins, places, 0))
        return {name: torch.from_numpy(values) for name, values in row.items()}
