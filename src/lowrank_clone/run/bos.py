"""Whether the teacher is given its text as it was trained on it: with a bos before it, or without."""

from __future__ import annotations

import logging

from rich.console import Console
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..data.blocks import PackedBlocks
from ..data.tokenizer import bos_ids
from ..objective.bos import bos_gap

_TOKENS = 4096  # that are measured
_log = logging.getLogger("lowrank_clone")


def say_bos_gap(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks: PackedBlocks, console: Console
) -> None:
    """Print the teacher's loss with a bos before each block and without, and warn where that is another model.

    A tokenizer without a bos has nothing to compare.
    """
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int) or blocks.length < 4:
        return
    gap = bos_gap(teacher, blocks.select(range(min(len(blocks), -(-_TOKENS // blocks.length)))), bos)
    console.print(f"  the teacher's loss is {gap}", markup=False, highlight=False)
    begins, helps = bool(bos_ids(tokenizer)), gap.with_bos < gap.without
    if not gap.matters or not (begins or helps):
        return
    if begins and helps:
        _log.warning(
            "teacher: its bos matters: %s; blocks here begin with it, and what the student reads must too", gap
        )
    else:
        harms = "adds a bos, which harms it" if begins else "adds no bos, which it needs"
        _log.warning(
            "teacher: %s, and its tokenizer %s; the blocks follow the tokenizer, so give the teacher's folder a "
            "tokenizer_config.json with the other add_bos_token, or the student learns from broken targets",
            gap,
            harms,
        )
