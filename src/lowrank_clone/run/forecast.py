"""What a run will read and how long it will take, said before anything runs: estimates, named as such."""

from __future__ import annotations

import math
import platform
import time
from dataclasses import dataclass
from typing import Any

import torch

from ..cost.estimate import Cost
from ..data.estimate import TextEstimate, estimate_text
from ..errors import InputError, count_of
from ..recipe.schema import Recipe
from ..training.arguments import CloneArguments
from .job import Job

ACCELERATOR, SHARE = "h100-80gb", 0.4  # what the hours on an accelerator are said for
_SURELY = 2  # epochs by an estimate, beyond which it is not for its error that there are more than one


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
            if source.tokens is not None and source.documents is not None:
                size = f"{about}{count_of(source.documents, 'document')}, {about}{count_of(source.tokens, 'token')}"
            lines.append(f"{source.key} {source.path}: {size}")
            if source.others:
                lines.append(f"{source.key}: not read: {count_of(source.others, 'file')} of other kinds")
        lines += [f"{line}; this is counted exactly before the run" for line in self.text.doubts]
        if self.text.train_blocks is None:
            reads = "" if self.steps is None else f"; the run reads {self.blocks:,} blocks in {self.steps:,} steps"
            return [*lines, f"How many blocks and epochs that makes is not known{reads}"]
        validation = self.text.validation_blocks
        lines.append(
            f"{about.capitalize()}{count_of(self.text.train_blocks, 'block')} of {self.sequence_length:,} tokens to "
            f"train on, {validation:,} to validate on"
        )
        if self.epochs is not None:
            what = f"about {self.steps:,} steps" if self.text.exact is False else f"{self.steps:,} steps"
            lines.append(f"The run reads {self.blocks:,} blocks in {what}: {about}{_rounded(self.epochs)} epochs")
        return lines


def forecast(job: Job) -> Forecast:
    """Look into the text of a job.

    Raises:
        InputError: The run would read its text more than once without `data.repeat`, the text is less than a step, a
            source is too small for its budget or share, or a small text has a malformed row.
    """
    text = estimate_text(job.recipe.data, job.tokenizer, run_tokens(job.recipe, job.arguments))
    steps, blocks = _length(job, text.train_blocks)
    epochs = None if blocks is None or not text.train_blocks else blocks / text.train_blocks
    if text.exact and text.train_blocks == 0:
        raise InputError(_too_small(text, job.recipe))
    if text.train_blocks is not None and blocks is not None and (text.exact or (epochs or 0) > _SURELY):
        _check_length(job, text.train_blocks, blocks, "" if text.exact else "about ")
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


def step_blocks(arguments: CloneArguments) -> int:
    """Blocks that one optimiser step of all processes reads."""
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return rows * arguments.world_size


def run_tokens(recipe: Recipe, arguments: CloneArguments) -> int | None:
    """Tokens that a run reads whose length is counted in steps: no more of a Hub dataset is downloaded."""
    steps = arguments.max_steps
    return steps * step_blocks(arguments) * recipe.data.sequence_length if steps > 0 else None


def check_blocks(job: Job, train_blocks: int) -> None:
    """Ask the same again once the blocks are counted, for a text of which only a part was looked into, or nothing.

    Raises:
        InputError: They are less than a step, or the run reads them more than once without `data.repeat`.
    """
    _, blocks = _length(job, train_blocks)
    assert blocks is not None
    _check_length(job, train_blocks, blocks)


def _check_length(job: Job, train_blocks: int, blocks: int, about: str = "") -> None:
    """Refuse a run that takes more than there is: a slip in a budget far more often than a wish.

    A run whose length is given in epochs says by itself how often it reads its text.

    Args:
        blocks: What the run reads in all.
    """
    data, arguments, step = job.recipe.data, job.arguments, step_blocks(job.arguments)
    if train_blocks < step:
        raise InputError(
            f"training.per_device_train_batch_size: an optimiser step reads {step:,} blocks "
            f"({arguments.per_device_train_batch_size:,} x {arguments.gradient_accumulation_steps:,} micro-batches x "
            f"{arguments.world_size:,} processes), and the text makes {about}{train_blocks:,} of "
            f"{data.sequence_length:,} tokens; expected at least one step; lower it, or give more text"
        )
    if arguments.max_steps > 0 and blocks > train_blocks and not data.repeat:
        raise InputError(
            f"data.repeat: the run's {blocks * data.sequence_length:,} tokens are {about}"
            f"{_rounded(blocks / train_blocks)} epochs of this text, which has {about}"
            f"{train_blocks * data.sequence_length:,}; expected at most one; give more text, shorten the run to "
            f"training.max_steps={train_blocks // step}, or accept it with data.repeat=true"
        )


def _too_small(text: TextEstimate, recipe: Recipe) -> str:
    tokens = sum(source.tokens or 0 for source in text.sources)
    return (
        f"data.sequence_length: got {recipe.data.sequence_length:,}, and the text has {tokens:,} tokens in all, too "
        f"few for a block to train on and one to validate on; lower it to {max(2, tokens // 4):,} or less, or give "
        "more text"
    )


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


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
