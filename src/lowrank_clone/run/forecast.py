"""What a run will read and how long it will take, said before anything runs: estimates, named as such."""

from __future__ import annotations

import math
import platform
import time
from dataclasses import dataclass
from typing import Any

import torch

from ..cost.estimate import Cost
from ..data.config import DataConfig
from ..data.estimate import TextEstimate, estimate_text
from ..errors import InputError
from ..recipe.schema import Recipe
from ..training.trainer_inputs import check_enough
from .job import Job

ACCELERATOR, SHARE = "h100-80gb", 0.4  # what the hours on an accelerator are said for


@dataclass(frozen=True)
class Forecast:
    """Steps and blocks of a run. Where the text's size is unknown (a Hub dataset), `epochs` is too."""

    text: TextEstimate
    steps: int | None
    blocks: int | None
    """Blocks that all steps read together, repeated ones counted again."""
    epochs: float | None
    sequence_length: int

    @property
    def tokens(self) -> int | None:
        """Tokens that all steps read together."""
        return None if self.blocks is None else self.blocks * self.sequence_length

    def lines(self) -> list[str]:
        """What a user wants to know before starting."""
        about = "" if self.text.exact else "about "
        lines = []
        for source in self.text.sources:
            size = "its size is not known before it is read"
            if source.tokens is not None:
                size = f"{about}{source.documents:,} documents, {about}{source.tokens:,} tokens"
            lines.append(f"{source.key} {source.path}: {size}")
            if source.others:
                lines.append(f"{source.key}: {source.others:,} other files there are of kinds that are not read")
        if self.text.train_blocks is None:
            reads = "" if self.steps is None else f"; the run reads {self.blocks:,} blocks in {self.steps:,} steps"
            return [*lines, f"How many blocks and epochs that makes is not known{reads}"]
        validation = self.text.validation_blocks
        lines.append(
            f"{about.capitalize()}{self.text.train_blocks:,} blocks of {self.sequence_length:,} tokens to train on, "
            f"{validation:,} to validate on"
        )
        if self.epochs is not None:
            what = f"about {self.steps:,} steps" if self.text.exact is False else f"{self.steps:,} steps"
            lines.append(f"The run reads {self.blocks:,} blocks in {what}: {about}{_rounded(self.epochs)} epochs")
        return lines


def forecast(job: Job) -> Forecast:
    """Look into the text of a job.

    Raises:
        InputError: The run would read its text more often than `data.max_epochs`, or a small text has a malformed row.
    """
    text = estimate_text(job.recipe.data, job.tokenizer)
    steps, blocks = _length(job, text.train_blocks)
    epochs = None if blocks is None or not text.train_blocks else blocks / text.train_blocks
    if text.exact and text.train_blocks == 0:
        raise InputError(_too_small(text, job.recipe))
    if epochs is not None and blocks is not None:
        check_epochs(job.recipe.data, epochs, blocks, "" if text.exact else "about ")
    return Forecast(text, steps, blocks, epochs, job.recipe.data.sequence_length)


def _length(job: Job, train_blocks: int | None) -> tuple[int | None, int | None]:
    """Steps of a run, and blocks that it reads; None while neither is known."""
    arguments = job.arguments
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if not train_blocks:
        steps = arguments.max_steps if arguments.max_steps > 0 else None
        return steps, None if steps is None else steps * batch * arguments.gradient_accumulation_steps
    # As Trainer counts: the last batch of an epoch may be smaller, and so may its last step.
    per_epoch = math.ceil(math.ceil(train_blocks / batch) / arguments.gradient_accumulation_steps)
    if arguments.max_steps > 0:
        whole, rest = divmod(arguments.max_steps, per_epoch)
        read = rest * batch * arguments.gradient_accumulation_steps
        return arguments.max_steps, whole * train_blocks + min(read, train_blocks)
    return math.ceil(per_epoch * arguments.num_train_epochs), math.ceil(train_blocks * arguments.num_train_epochs)


def check_blocks(job: Job, train_blocks: int) -> None:
    """Ask the same again once the blocks are counted, for a text of which only a part was looked into, or nothing.

    Raises:
        InputError: They make no batch, or the run reads them more than `data.max_epochs` times.
    """
    check_enough(train_blocks, job.arguments)
    _, blocks = _length(job, train_blocks)
    assert blocks is not None
    check_epochs(job.recipe.data, blocks / train_blocks, blocks)


def check_epochs(data: DataConfig, epochs: float, blocks: int, about: str = "") -> None:
    """Ask about a run that reads its text hundreds of times, which is a slip in a budget far more often than a wish.

    Args:
        blocks: What the run reads in all.

    Raises:
        InputError: It is more than `data.max_epochs`, which accepts it.
    """
    if epochs > data.max_epochs:
        raise InputError(
            f"data.max_epochs: the run's {blocks * data.sequence_length:,} tokens are {about}{_rounded(epochs)} epochs "
            f"of this text, expected at most {_rounded(data.max_epochs)}; give more text, shorten the run, or accept "
            f"it with data.max_epochs={_accepting(epochs)}"
        )


def _too_small(text: TextEstimate, recipe: Recipe) -> str:
    tokens = sum(source.tokens or 0 for source in text.sources)
    return (
        f"data.sequence_length: got {recipe.data.sequence_length:,}, and the text has {tokens:,} tokens in all, too "
        f"few for a block to train on and one to validate on; lower it to {max(2, tokens // 4):,} or less, or give "
        "more text"
    )


def _accepting(epochs: float) -> int:
    """A round number above."""
    digits = 10 ** max(0, len(str(int(epochs))) - 1)
    return (int(epochs) // digits + 1) * digits


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def time_lines(cost: Cost, tokens: int, device: torch.device, width: int) -> list[str]:
    """Hours for so many tokens on this machine and on a named accelerator.

    Args:
        width: The teacher's residual width, the size of the products that this machine is timed with.
    """
    rate = measured_rate(device, cost.dtype, width)
    seconds = tokens * cost.flops_per_token / rate
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {_threads()}"
    board = cost.run(tokens, ACCELERATOR, utilisation=SHARE)
    fits = "fits" if board.fits else "does not fit"
    dtype = str(cost.dtype).removeprefix("torch.")
    return [
        f"Time on this machine ({name}): {_duration(seconds)} or more for {tokens:,} tokens. Estimated: the cost "
        f"model's {cost.flops_per_token * tokens:.2g} FLOPs at {rate / 1e9:,.0f} GFLOP/s, which training one {dtype} "
        "FFN of the teacher's width reached just now; evaluation, the start and the losses' softmax come on top.",
        f"Time on one {ACCELERATOR}: {_duration(board.hours * 3600)} at {SHARE:.0%} of its data sheet's dense "
        f"peak, {board.kilowatt_hours:,.1f} kWh of the board; the memory {fits}. Predicted, not measured.",
    ]


def measured_rate(device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.5) -> float:
    """FLOP/s of training on this device, by a small piece of it: a norm and a gated FFN, forward and backward.

    A product alone would reach several times as much where a processor has units for it (AMX, tensor cores): norms,
    activations and gradients read the same memory and multiply little.

    Args:
        width: Channels of the residual stream; the FFN has three times as many.
        seconds: To measure for, at least one pass.
    """
    tokens, inner = 256, 3 * width
    options: Any = {"device": device, "dtype": dtype}
    norm, act = torch.nn.RMSNorm(width, **options), torch.nn.SiLU()
    gate, up = (torch.nn.Linear(width, inner, bias=False, **options) for _ in range(2))
    down = torch.nn.Linear(inner, width, bias=False, **options)
    x = torch.randn(tokens, width, **options, requires_grad=True)

    def once() -> float:
        start = time.perf_counter()
        with torch.enable_grad():
            h = norm(x)
            (x + down(act(gate(h)) * up(h))).float().square().mean().backward()
        assert x.grad is not None
        float(x.grad[0, 0])  # reading one number waits for the device
        return time.perf_counter() - start

    once()  # the first call sets up the libraries
    best, spent = float("inf"), 0.0
    while spent < seconds:
        took = once()
        best, spent = min(best, took), spent + took
    return 3 * 2.0 * tokens * 3 * width * inner / best


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s" if seconds >= 1 else "under a second"
    if seconds < 5400:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} hours" if seconds < 360_000 else f"{seconds / 86400:,.0f} days"
