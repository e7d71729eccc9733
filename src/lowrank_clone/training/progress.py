"""What a run tells people while it goes: the steps that are done, and short lines."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from ..progress import Meter, progress

SHOWN = ("loss", "lm", "kl", "clone", "grad_norm", "learning_rate")


class Progress(TrainerCallback):
    """Optimiser steps with tokens/s and time left, and one short line for each log without the taps.

    Args:
        steps: Whether to show the steps, and not the logs alone.
    """

    def __init__(self, steps: bool = True) -> None:
        self._shows_steps = steps
        self._shown = ExitStack()
        self._meter: Meter | None = None
        self._begin = (0, 0.0)  # tokens and seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to show the steps."""
        self._begin = (state.num_input_tokens_seen, time.monotonic())
        shown = self._shows_steps and state.is_world_process_zero
        if state.is_world_process_zero:
            tqdm.write(self._world(args))
        done = state.global_step
        self._meter = self._shown.enter_context(
            progress(state.max_steps, "training", "step", initial=done, shown=shown)
        )

    @staticmethod
    def _world(args: Any) -> str:
        rows = args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
        engine = {"none": "1 process", "ddp": f"{args.world_size} processes (DDP)"}.get(
            args.engine.name, f"{args.world_size} processes (FSDP2, teacher sharding: {args.teacher_sharding})"
        )
        return f"{engine}, {rows} sequences a step"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        if self._meter is not None:
            tokens, seconds = self._begin
            speed = (state.num_input_tokens_seen - tokens) / max(time.monotonic() - seconds, 1e-9)
            self._meter.advance(note=f"{speed:,.0f} tokens/s")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line of this log."""
        line = log_line(logs or {})
        if state.is_world_process_zero and line:
            tqdm.write(f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}  {line}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the bar, or write the last line."""
        self._shown.close()
        self._meter = None


def log_line(logs: dict[str, Any]) -> str:
    """One log as a line; empty for logs that hold no losses (the closing summary of a run)."""
    found = [name.removesuffix("lm") for name in logs if name.startswith("eval_") and name.endswith("_lm")]
    if found:  # of one data set, whose name follows where there are several
        at, of = found[0], f" {found[0][5:-1]}" if found[0] != "eval_" else ""
        rest = "".join(f"  {key} {logs[at + key]:.4g}" for key in ("kl", "clone") if at + key in logs)
        return f"validation{of}: lm {logs[at + 'lm']:.4f} nats/token, perplexity {logs[at + 'perplexity']:.2f}{rest}"
    if "event" in logs:
        return f"{logs['event']}: {logs['reason']}"
    if "lm" in logs:
        terms = "  ".join(f"{key} {logs[key]:.4g}" for key in SHOWN if key in logs)
        return f"{terms}  ({logs['tokens']:,} tokens)"
    return ""
