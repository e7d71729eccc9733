"""Documents that are nearly equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from .shards import TokenSource


def first_of_near(shards: Sequence[TokenSource], tokenizer: PreTrainedTokenizerBase) -> dict[int, np.ndarray]:
    """TODO"""
    raise NotImplementedError
