"""Starts: pure functions from the teacher, the plan and some text to factors and norms, by the student's names.

random        LRC, arXiv 2505.12781: normal factors; norms as their family starts them
channels      RED, arXiv 2605.29327: one set of channels for all factors, chosen by the teacher's activations
calibrated    ours: regressions that follow the teacher's residual stream through the student, block by block
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from . import channels
from .calibration import calibrate
from .encoder import Basis
from .errors import InputError
from .evaluate import evaluating
from .plan import Plan
from .replay import block_names


def random_start(plan: Plan, std: float = 0.02, seed: int = 0) -> dict[str, Tensor]:
    """Normal factors `Z ~ N(0, std^2)`, [d_T, d_S] each, float32 (LRC, arXiv 2505.12781, section 3.1).

    Drawn on the CPU, so that one seed gives one start on every device. Vectors keep the neutral start of their family.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (plan.teacher_width, plan.student_width)
    return {
        role.name: torch.empty(shape).normal_(std=std, generator=generator) for role in plan.of_kind("read", "write")
    }


def channels_start(
    teacher: PreTrainedModel, plan: Plan, batches: Sequence[Tensor], *, sequences: int = 15, share_head: bool = False
) -> dict[str, Tensor]:
    """Factors that select the teacher's most active channels (RED, arXiv 2605.29327; see `channels.py`).

    Args:
        batches: Token ids [batch, length], on any device.
        sequences: How many of their sequences are looked at (all, if there are fewer); 15 are enough (RED).
        share_head: An untied LM head is to have the embedding's factor.

    Returns:
        One-hot factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32 on the teacher's device.
        The embedding's is scaled where the family derives an embedding scale from the width.

    Raises:
        InputError: There is no text.
    """
    rows = [row[None] for ids in batches for row in ids][:sequences]
    if not rows:
        raise InputError("calibration text: got no sequences; channels are chosen by activations, so give some text")
    rows = [row.to(teacher.device) for row in rows]
    with evaluating(teacher):
        return channels.select(teacher, plan, rows, share_head)


def calibrated_start(
    teacher: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Tensor],
    *,
    basis: Basis = "reads",
    share_head: bool = False,
    progress: bool = True,
) -> dict[str, Tensor]:
    """A student that is useful before its first training step, by regressions alone (ours; see `calibration.py`).

    Args:
        batches: Token ids [batch, length], on any device. About eight tokens for each channel of the teacher give a
            good start, more a better one. Streams of all of them are spooled to temporary files.
        basis: What the student's stream holds: what the teacher's `reads` see of it, some of its `channels`, or its
            principal components (`pca`).
        share_head: An untied LM head is to have the embedding's factor, so this is fitted for both.

    Returns:
        Factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32 on the teacher's device.

    Raises:
        InputError: Too few tokens, a basis that is unknown or does not go with a tied head, or a model whose blocks
            can't be run one at a time.
    """
    _check(plan, batches, basis, share_head)
    batches = [ids.to(teacher.device) for ids in batches]
    steps = 2 * len(block_names(teacher))
    with (
        evaluating(teacher),
        tqdm(total=steps, desc="calibrating", unit="block", dynamic_ncols=True, disable=not progress) as bar,
    ):
        return calibrate(teacher, plan, batches, basis, share_head, lambda: bar.update() and None)


def _check(plan: Plan, batches: Sequence[Tensor], basis: str, share_head: bool) -> None:
    if basis not in get_args(Basis):
        raise InputError(f"basis: got {basis!r}, expected one of {', '.join(get_args(Basis))}")
    if basis == "pca" and (share_head or plan.student_config.tie_word_embeddings):
        raise InputError(
            "basis: `pca` does not go with a tied head: its gain between the stream and the head is not diagonal in "
            "principal components, and the head has no factor to absorb it; use `reads`, which decodes the tied head"
        )
    distinct = {row.tobytes(): len(row) for ids in batches for row in ids.cpu().numpy()}
    tokens, width = sum(distinct.values()), plan.teacher_width
    if tokens < width:
        raise InputError(
            f"calibration text: got {tokens} tokens in sequences of their own, needed at least the teacher's width "
            f"{width}, or its regressions have no unique solution; give about {8 * width}"
        )
