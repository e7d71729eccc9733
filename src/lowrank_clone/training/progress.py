"""What a run tells people while it goes: a progress bar and short lines."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

SHOWN = ("loss", "lm", "kl", "clone", "grad_norm", "learning_rate")


class Progress(TrainerCallback):
    """A bar over optimiser steps with tokens/s and time left, and one short line for each log without the taps."""

    def __init__(self, bar: bool = True) -> None:
        self._show_bar = bar
        self._bar: Any = None
        self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self._first_tokens = state.num_input_tokens_seen
        if state.is_world_process_zero and self._show_bar:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar on."""
        if self._bar is not None:
            elapsed = self._bar.format_dict["elapsed"]
            if elapsed > 0:
                speed = (state.num_input_tokens_seen - self._first_tokens) / elapsed
                self._bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line of this log."""
        line = log_line(logs or {})
        if state.is_world_process_zero and line:
            tqdm.write(f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}  {line}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def log_line(logs: dict[str, Any]) -> str:
    """One log as a line; empty for logs that hold no losses (the closing summary of a run)."""
    if "eval_lm" in logs:
        rest = "".join(f"  {key} {logs[f'eval_{key}']:.4g}" for key in ("kl", "clone") if f"eval_{key}" in logs)
        return f"validation: lm {logs['eval_lm']:.4f} nats/token, perplexity {logs['eval_perplexity']:.2f}{rest}"
    if "lm" in logs:
        terms = "  ".join(f"{key} {logs[key]:.4g}" for key in SHOWN if key in logs)
        return f"{terms}  ({logs['tokens']:,} tokens)"
    return ""
