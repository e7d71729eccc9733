"""How fast a run trains and how much memory it takes, for its logs."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback


class Speed(TrainerCallback):
    """Tokens per second of training alone: what passes in evaluations and while checkpoints are written is left out."""

    def __init__(self) -> None:
        self._since, self._seconds, self._tokens = time.monotonic(), 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self._since, self._seconds, self._tokens = time.monotonic(), 0.0, state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count what passed since the last step, or since what followed it."""
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what passed since the step."""
        self._since = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what passed since the step."""
        self._since = time.monotonic()

    def figures(self, tokens: int) -> dict[str, float]:
        """`tokens_per_second` of all processes since this was last asked, and `memory_gib` (`memory_gib`).

        Args:
            tokens: Seen in the whole run until now.
        """
        seconds, new = self._seconds, tokens - self._tokens
        self._seconds, self._tokens = 0.0, tokens
        speed = {"tokens_per_second": round(new / seconds, 2)} if seconds > 0 else {}
        return {**speed, "memory_gib": round(memory_gib(), 3)}


def memory_gib() -> float:
    """GiB: the most that tensors took on this process's CUDA device so far, without one what the process takes now."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
