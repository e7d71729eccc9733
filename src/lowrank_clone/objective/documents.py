"""Documents packed into one row: what both models are given, and whether a family keeps the documents apart.

Where `position_ids` begin again, transformers lets attention stop, whatever computes it: eager, SDPA and flex
attention by a mask, flash attention by its lengths. It does so where no attention mask is given, and with flash
attention only for a single row. Layers that carry a state from token to token (recurrent ones, convolutions) carry it
across. Whether a family does is tried on a tiny model of its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from ..errors import InputError
from ..plan.roles import Plan
from ..plan.tiny import VOCAB, tried_tiny_model
from .head import head_input
from .padding import PaddingCheck
from .tokens import document_starts

_LENGTHS = ((5, 21, 3, 11), (20, 1, 19))  # of the documents of two rows; some longer than a tiny model's window
_PADDING = 7  # at the end of a third row, beside one document and one token


class CheckedInputs:
    """What the models of a plan are given of a batch, refused where they would mix what the loss keeps apart."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._padding = plan, PaddingCheck(plan)
        self._refusal: str | None = None
        self._tried = False

    def of(self, batch: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Any]:
        """The arguments of either model.

        Raises:
            InputError: The batch is padded or packed in a way that the family does not follow.
        """
        self._padding.check(batch)
        several = packed(batch)
        if several and not self._tried:
            self._refusal, self._tried = document_mask_refusal(self._plan), True
        if several and self._refusal is not None:
            raise InputError(
                f"position_ids: got rows of several documents, and {self._refusal}; give rows of one document"
            )
        return {**model_inputs(batch, model), "use_cache": False}


def packed(batch: Mapping[str, Tensor]) -> bool:
    """Whether a row holds several documents, told apart by `position_ids` that begin again."""
    if "position_ids" not in batch:
        return False
    present = _present(batch)
    return bool((document_starts(present, batch["position_ids"]) & ~document_starts(present, None)).any())


def model_inputs(batch: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """What a model is given of a batch, so that documents which `position_ids` tell apart are apart for it too.

    Of packed rows the attention mask is left out, and padding becomes documents of its own, which no token attends to.
    For flash attention, packed rows are joined into one.

    Returns:
        `input_ids`, and `attention_mask` and `position_ids` where there are any, `[batch, length]`; or all of them
        `[1, batch * length]`.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    inputs["input_ids"] = inputs["input_ids"].long()
    if not packed(batch):
        return inputs
    positions = inputs["position_ids"].expand_as(inputs["input_ids"])
    if "attention_mask" in inputs:
        padding = inputs.pop("attention_mask") == 0
        following = torch.nn.functional.pad(positions[:, 1:], (0, 1))
        # A padded place must not be followed by its successor, or they would be one document.
        positions = torch.where(padding, (following == 1).long(), positions)
    inputs["position_ids"] = positions
    if is_flash_attention_requested(model.config):
        if (positions[document_starts(_present(batch), positions)] != 0).any():
            raise InputError(
                "position_ids: got rows of several documents, one of which does not begin at position 0, expected "
                "0, as flash attention takes that for a beginning; count positions from 0 in each document"
            )
        inputs = {name: values.reshape(1, -1) for name, values in inputs.items()}
    return inputs


@torch.no_grad()
def document_mask_refusal(plan: Plan) -> str | None:
    """Why documents can't be kept apart in one row, or None where they can: tried on a tiny model, in a second.

    The hidden states of every document in a packed row must be those of the document alone.
    """
    name = plan.teacher_config.model_type
    model = tried_tiny_model(plan.teacher_config)
    if model is None:
        return f"no tiny model of `{name}` can be made to try whether it keeps the documents of a row apart"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (len(_LENGTHS), sum(_LENGTHS[0])), generator=generator)
    positions = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in _LENGTHS])
    mask = torch.ones_like(ids)
    mask[-1, -_PADDING:] = 0
    try:
        batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        together = _hidden(model, model_inputs(batch, model))
        for row, lengths in enumerate(_LENGTHS):
            stop = 0
            for length in lengths:
                start, stop = stop, stop + length
                kept = slice(start, min(stop, ids.shape[1] - _PADDING * row))
                alone = _hidden(model, {"input_ids": ids[row : row + 1, kept]})
                if not torch.allclose(together[row, kept], alone[0], rtol=1e-3, atol=1e-4):
                    return (
                        f"`{name}` does not keep the documents of a row apart: what its layers make of a document "
                        "depends on those before it, whatever its positions say"
                    )
    except Exception as error:  # each family refuses positions in its own way
        return f"`{name}` can't run on rows of several documents ({' '.join(str(error).split())[:200]})"
    return None


def _hidden(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    with head_input(model) as caught:
        model(**inputs, use_cache=False)
    return caught.hidden


def _present(batch: Mapping[str, Tensor]) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask != 0
