"""What a student kept of its teacher: activations, the rank of its residual stream, its factors, its neurons.

Measured on blocks of text (rows with `input_ids`, all of one length) with stock models and hooks that are gone
afterwards. Which modules are compared, which are the layers and where neurons can be seen all comes from the plan.

Axes: n tokens, d a residual width (`d_T` or `d_S`), w the width of a tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..factors.factors import Factors
from ..objective.evaluate import rows_per_batch
from ..plan.roles import Plan
from .activations import TapError, relative_errors
from .neurons import MaskTest, mask_test
from .ranks import StreamRank, stream_ranks
from .spectra import Spectrum, factor_spectra


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect_pair` measured on `tokens` tokens; no `masking` where no neuron can be observed.

    `start_errors` are the student's before training, where they were measured too.
    """

    tokens: int
    teacher_width: int
    student_width: int
    errors: tuple[TapError, ...]
    ranks: tuple[StreamRank, ...]
    spectra: tuple[Spectrum, ...]
    masking: MaskTest | None
    start_errors: tuple[TapError, ...] = ()


def inspect_pair(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    factors: Factors,
    blocks: Sequence[Any],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = False,
) -> Inspection:
    """All four diagnostics of one student.

    Args:
        blocks: Rows with `input_ids`, all of one length; the masking test takes the first `BATCH_TOKENS` tokens.
        seeds: Of the random neurons, one draw each.
        progress: Whether to show progress on stderr.
    """
    length = len(blocks[0]["input_ids"])
    text = [blocks[i] for i in range(min(len(blocks), rows_per_batch(length)))]
    errors = relative_errors(teacher, student, plan, factors, blocks, progress)
    ranks = stream_ranks(teacher, student, plan, blocks, progress)
    spectra = factor_spectra(factors, plan, progress)
    masking = mask_test(teacher, student, plan, text, seeds=seeds, progress=progress)
    tokens = len(blocks) * length
    return Inspection(tokens, plan.teacher_width, plan.student_width, errors, ranks, spectra, masking)
