"""Whether a family ignores padding, tried on a tiny model of its layout when a padded batch first comes.

Most do, on both sides. Recurrent ones may let padding on the left into their state, and where a position counts by
itself (and not by its distance to others) tokens behind padding stand at other positions than without.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..plan.roles import Plan
from ..plan.tiny import VOCAB, tried_tiny_model
from .head import head_input

LENGTH, PADDING = 8, 3
SIDES = {"left": slice(PADDING, None), "right": slice(None, LENGTH - PADDING)}  # where the tokens are


class PaddingCheck:
    """Refuses batches whose padding would change the loss without a word."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._wrong: frozenset[str] | None = None

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Look at a batch's mask, if it has one.

        Raises:
            InputError: It is padded on a side that the teacher's family does not ignore.
        """
        mask = batch.get("attention_mask")
        if mask is None or mask.ndim != 2 or "position_ids" in batch:
            return
        empty = (mask == 0).all(1)  # a row that only fills up a batch
        edges = (torch.stack([mask[:, 0], mask[:, -1]]).eq(0) & ~empty).any(1).tolist()
        padded = {side for side, found in zip(SIDES, edges, strict=True) if found}
        if padded and self._wrong is None:
            self._wrong = sides_not_ignored(self._plan)
        if wrong := padded & (self._wrong or frozenset()):
            side = min(wrong)
            instead = "pack the sequences or give them one by one"
            if side == "left" and "right" not in (self._wrong or ()):
                instead = "pad on the right, or give position_ids that begin at each row's first token"
            raise InputError(
                f"attention_mask: got padding on the {side}, which `{self._plan.teacher_config.model_type}` does not "
                f"ignore, so the loss would be another; {instead}"
            )


@torch.no_grad()
def sides_not_ignored(plan: Plan) -> frozenset[str]:
    """The sides on which padding changes the hidden states of the tokens; none where no tiny model can be made."""
    model = tried_tiny_model(plan.teacher_config)
    if model is None:
        return frozenset()
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    wrong = set()
    for side, kept in SIDES.items():
        mask = torch.ones_like(ids)
        mask[0] = 0
        mask[0, kept] = 1
        with head_input(model) as padded:
            model(input_ids=ids * mask, attention_mask=mask, use_cache=False)
        with head_input(model) as alone:
            model(input_ids=ids[:1, kept], use_cache=False)
        if not torch.allclose(padded.hidden[0, kept], alone.hidden[0], rtol=1e-3, atol=1e-4):
            wrong.add(side)
    return frozenset(wrong)
