"""The taps of a forward pass compared: the student's activations with the teacher's, and what divides them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import InputError
from ..plan.roles import TapSpec
from ..shards import whole
from .probe import TapRuns
from .tap_mse import mean_square, tap_mse, write_target
from .taps import Watch
from .tokens import token_count


class Comparison:
    """The taps of one forward pass: the teacher's outputs, each released once the student's has been compared with it.

    Args:
        taps: What to compare; empty for nothing. runs: How each of them runs, by its name (see `probe.py`).
        tokens: n, how many tokens the batch has.
        factors: The leaf of each student-width write's Z, by tap name.
        through: The teacher's (weight, bias) of each write that is compared at teacher width.
        valid: [n] bool, or None for every token. count: What sums over tokens are divided by; how many of the n count
            unless given. A module that runs on every token several times has its squares added, as one that runs
            several times in the pass.
        scales: What multiplies each tap's MSE, by tap name, `own` for one over its own target's mean square, or None.
        overwrite: Whether the teacher has done with its outputs when the student runs, so that their memory is free.
        measure: Whether to note in `relative` what makes each tap's relative error, which reads every target once more.
    """

    def __init__(
        self,
        taps: Iterable[TapSpec],
        runs: Mapping[str, TapRuns],
        tokens: int,
        factors: Mapping[str, Tensor],
        through: Mapping[str, tuple[Tensor, Tensor | None]],
        valid: Tensor | None,
        count: Tensor | None,
        scales: Mapping[str, Tensor] | str | None,
        overwrite: bool = True,
        measure: bool = False,
    ) -> None:
        self._measure = measure
        self._taps, self._factors, self._through, self._scales = list(taps), factors, through, scales
        self._runs, self._tokens, self._valid, self._overwrite = runs, tokens, valid, overwrite
        self._count: Tensor | int = tokens
        if count is not None or valid is not None:
            self._count = token_count(count, valid, torch.float32)
        self._outputs: defaultdict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self._calls: defaultdict[str, int] = defaultdict(int)
        self.losses: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.relative: dict[str, Tensor] = {}

    def watch_teacher(self, watch: Watch) -> AbstractContextManager[None]:
        """Keep the outputs of the teacher, which runs inside this context."""
        return watch(self._taps, self._keep)

    @contextmanager
    def watch_student(self, watch: Watch) -> Iterator[None]:
        """Compare the outputs of the student, which runs inside this context. `losses` is complete after it.

        Raises:
            InputError: A tapped module ran in one model only.
        """
        with watch(self._taps, self._compare):
            yield
        for tap in self._taps:
            if self._calls[tap.name] != self._runs[tap.name].calls or self._outputs[tap.name]:
                raise InputError(
                    f"tap `{tap.name}`: module `{tap.module}` did not run in both models as often as in a trial pass; "
                    "leave this tap out"
                )

    def _keep(self, tap: TapSpec, _: Tensor, output: Tensor) -> None:
        rows = self._runs[tap.name].copies * self._tokens
        if len(output) != rows:
            raise InputError(
                f"tap `{tap.name}`: module `{tap.module}` returned {len(output)} rows for a batch of {self._tokens} "
                f"tokens, expected {rows}; leave this tap out"
            )
        self._outputs[tap.name].append((output, _version(output)))

    def _compare(self, tap: TapSpec, given: Tensor, output: Tensor) -> None:
        if not self._outputs[tap.name]:
            raise InputError(f"tap `{tap.name}`: module `{tap.module}` did not run in the teacher; leave this tap out")
        teacher, version = self._outputs[tap.name].pop(0)
        if _version(teacher) != version:
            raise InputError(
                f"tap `{tap.name}`: the teacher changed what `{tap.module}` returned in place, which it did not do in "
                "a trial pass; leave this tap out"
            )
        through, copies = self._whole_through(tap), self._runs[tap.name].copies
        valid = self._valid if self._valid is None or copies == 1 else self._valid.repeat(copies)
        call = call_name(tap.name, self._calls[tap.name])
        self._calls[tap.name] += 1
        student = output if through is None else given.reshape(-1, given.shape[-1])
        factor = self._factors.get(tap.name)
        target = (teacher if factor is None else write_target(teacher, factor)).to(student.dtype)
        scale = self._scale(call, target, valid)
        square = mean_square(target, valid, self._count) if self._measure else None
        mse = tap_mse(
            student,
            target,
            product=None if factor is None else (teacher, factor),
            through=through,
            valid=valid,
            count=self._count,
            scale=scale,
            overwrite=self._overwrite or target is not teacher,
        )
        self.losses[tap.name] = self.losses[tap.name] + mse if tap.name in self.losses else mse
        if square is not None:
            missed = mse.detach() if scale is None else mse.detach() / scale
            pair = torch.stack([missed, square])
            self.relative[tap.name] = self.relative[tap.name] + pair if tap.name in self.relative else pair

    def _whole_through(self, tap: TapSpec) -> tuple[Tensor, Tensor | None] | None:
        if tap.name not in self._through:
            return None
        weight, bias = self._through[tap.name]
        return whole(weight), None if bias is None else whole(bias)

    def _scale(self, call: str, target: Tensor, valid: Tensor | None) -> Tensor | None:
        """What multiplies the MSE of this call of a tap; if anything does, its target's mean square is noted too."""
        if self._scales is None:
            return None
        self.squares[call] = square = mean_square(target, valid, self._count)
        if isinstance(self._scales, str):
            return square.clamp(min=torch.finfo(square.dtype).tiny).reciprocal()
        return self._scales[call]


def call_name(tap: str, call: int) -> str:
    """What call number `call` of a tap's module in a pass is known by: each has a mean square of its own."""
    return f"{tap}#{call + 1}" if call else tap


def _version(tensor: Tensor) -> int:
    """How often this tensor's memory has been changed in place."""
    return 0 if tensor.is_inference() else tensor._version


class TargetSquares:
    """Mean square of the target of every call of every tap.

    A running mean over optimiser steps (decay 0.9), each of all its tokens. A step's own mean is not known before its
    last micro-batch, so its losses are divided by the mean up to the step before; only the first step uses its own. So
    accumulation divides every micro-batch by the same numbers.
    """

    decay = 0.9

    def __init__(self, taps: Iterable[str]) -> None:
        self.names = list(taps)
        self.mean: Tensor | None = None
        self._sum: Tensor | None = None
        self._pushes: int | None = None

    def scales(self, pushes: int) -> dict[str, Tensor] | str:
        """One over each mean square, or `own` before there is one. `pushes` counts optimiser steps."""
        if pushes != self._pushes:
            self.fold()
            self._pushes = pushes
        if self.mean is None:
            return "own"
        return dict(zip(self.names, self.mean.clamp(min=torch.finfo(self.mean.dtype).tiny).reciprocal(), strict=True))

    def add(self, squares: Mapping[str, Tensor], count: Tensor, tokens: Tensor) -> None:
        """Take in one micro-batch of `tokens` tokens: each tap's squares, summed over them and divided by `count`."""
        means = torch.stack([squares[name] for name in self.names])
        update = torch.cat([means * count, tokens.to(means.dtype).view(1)])
        self._sum = update if self._sum is None else self._sum + update

    def fold(self) -> None:
        """End a step: fold its sums, over all processes, into the running mean."""
        if self._sum is None:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sum)
        total, self._sum = self._sum, None
        tokens = total[-1]
        if self.mean is None and not tokens:
            return
        mean = total[:-1] / tokens.clamp(min=1)
        # A step without a counted token leaves the mean where it is.
        self.mean = mean if self.mean is None else self.mean.lerp(mean, (1 - self.decay) * (tokens > 0))

    def drop(self) -> None:
        """Forget the sums of a step that is given up."""
        self._sum = None

    def to(self, device: torch.device) -> None:
        """Move what it holds."""
        self.mean = None if self.mean is None else self.mean.to(device)
        self._sum = None if self._sum is None else self._sum.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """The running mean and the sums of the step that is not folded yet."""
        return {key: value for key, value in (("mean", self.mean), ("sum", self._sum)) if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue where `state_dict` was taken."""
        mean, total = state.get("mean"), state.get("sum")
        self.mean = None if mean is None else mean.to(device)
        self._sum = None if total is None else total.to(device)
        self._pushes = None
