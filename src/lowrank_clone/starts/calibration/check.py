"""What a start refuses: text and teachers that it can make nothing sound of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InputError
from ...objective.batch import checked_batch


@torch.no_grad()
def check_inputs(teacher: PreTrainedModel, batches: Sequence[Tensor]) -> None:
    """Look at the ids and at every weight of the teacher, which takes seconds at a billion parameters.

    Raises:
        InputError: There is no text, a batch is no [batch, length] of token ids, or a weight is not finite.
    """
    if not batches:
        raise InputError("calibration text: got no sequences; starts look at activations, so give some text")
    for ids in batches:
        checked_batch({"input_ids": ids.cpu() if isinstance(ids, Tensor) else ids}, teacher.config.vocab_size)
    for name, parameter in teacher.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(
                f"teacher parameter `{name}`: got numbers that are not finite; the checkpoint is damaged, or overflows "
                f"{parameter.dtype}"
            )


def check_result(start: Mapping[str, Tensor], teacher: PreTrainedModel) -> None:
    """Refuse a start that overflowed on the way.

    Raises:
        InputError: A number is not finite.
    """
    for name, value in start.items():
        if not value.isfinite().all():
            raise InputError(
                f"start: what was found for `{name}` is not finite, since the teacher's activations overflow "
                f"{teacher.dtype} on this text; load the teacher in another dtype"
            )


def check_variety(covariance: Tensor, width: int) -> None:
    """Refuse text on which the teacher's stream has fewer directions than the student has channels.

    Args:
        covariance: [d_T, d_T] of the stream, float64, from float32 products.

    Raises:
        InputError: It has too few, as on one token that is repeated, or holds numbers that are not finite.
    """
    if not covariance.isfinite().all():
        raise InputError("calibration: the teacher's activations overflow on this text; load it in another dtype")
    values = torch.linalg.eigvalsh(covariance)
    directions = int((values > 1e-8 * values[-1]).sum())
    if directions < width:
        raise InputError(
            f"calibration text: the teacher's stream takes {directions} directions on it, needed at least the "
            f"student's width {width}; the text repeats itself, so give other text"
        )
