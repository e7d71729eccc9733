"""What an optimiser step reads: its micro-batches, and how much they hold in all processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..objective.objective import MaskScope
from ..objective.tokens import count_tokens
from .batches import new_batches, tokens_of
from .order import in_global_order, row_hashes
from .processes import add_up


class StepReader:
    """Reads the micro-batches of one optimiser step, and says what all processes read, in one exchange."""

    def __init__(self, trainer: Trainer, mask_scope: MaskScope) -> None:
        self._trainer, self._mask_scope = trainer, mask_scope
        self._tokens, self._rows = list[Tensor](), list[Tensor]()

    def read(self, batches: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
        """This process's batches, on the device."""
        trainer, drop_last = self._trainer, self._trainer.args.dataloader_drop_last
        for batch, new in new_batches(trainer, batches, trainer.train_dataset, self._mask_scope, drop_last):
            self._tokens.append(tokens_of(batch, new))
            self._rows.append(row_hashes(batch, new))
            yield batch

    def counted(self, batches: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, int, list[int]]:
        """Of all processes: `[2]` targets and positions as `count_tokens` has them, tokens, hashes of the rows."""
        args = self._trainer.args
        counts = torch.stack([count_tokens(batch, self._mask_scope) for batch in batches]).sum(0)
        hashes = in_global_order(self._rows, args.world_size, args.process_index)
        total = add_up(self._trainer, torch.cat([counts, torch.stack(self._tokens).sum().view(1), hashes]))
        tokens, *rows = total[2:].tolist()
        return total[:2], tokens, [row for row in rows if row]
