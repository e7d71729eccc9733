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
from .tap_mse import tap_mse
from .taps import Watch


class Comparison:
    """The taps of one forward pass: the teacher's outputs, each released once the student's has been compared with it.

    Args:
        taps: What to compare; empty for nothing.
        factors: The leaf of each student-width write's Z, by tap name.
        through: The teacher's (weight, bias) of each write that is compared at teacher width.
        valid: [n] bool, or None for every token. count: What sums over tokens are divided by, its own if None.
        scales: What multiplies each tap's MSE, by tap name, `own` for one over its own target's mean square, or None.
        overwrite: Whether the teacher has done with its outputs when the student runs, so that their memory is free.
    """

    def __init__(
        self,
        taps: Iterable[TapSpec],
        factors: Mapping[str, Tensor],
        through: Mapping[str, tuple[Tensor, Tensor | None]],
        valid: Tensor | None,
        count: Tensor | None,
        scales: Mapping[str, Tensor] | str | None,
        overwrite: bool = True,
    ) -> None:
        self._taps, self._factors, self._through, self._scales = list(taps), factors, through, scales
        self._valid, self._count, self._overwrite = valid, count, overwrite
        self._outputs: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.losses: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def watch_teacher(self, watch: Watch) -> AbstractContextManager[None]:
        """Keep the outputs of the teacher, which runs inside this context."""
        return watch(self._taps, lambda tap, _, output: self._outputs[tap.name].append(output))

    @contextmanager
    def watch_student(self, watch: Watch) -> Iterator[None]:
        """Compare the outputs of the student, which runs inside this context. `losses` is complete after it.

        Raises:
            InputError: A tapped module ran in one model only.
        """
        with watch(self._taps, self._compare):
            yield
        for tap in self._taps:
            if tap.name not in self.losses or self._outputs[tap.name]:
                raise InputError(
                    f"tap `{tap.name}`: module `{tap.module}` did not run in both models; leave this tap out"
                )

    def _compare(self, tap: TapSpec, given: Tensor, output: Tensor) -> None:
        if not self._outputs[tap.name]:
            raise InputError(f"tap `{tap.name}`: module `{tap.module}` did not run in the teacher; leave this tap out")
        target, through = self._outputs[tap.name].pop(0), self._through.get(tap.name)
        mse, square = tap_mse(
            output if through is None else given.reshape(-1, given.shape[-1]),
            target,
            factor=self._factors.get(tap.name),
            through=through,
            valid=self._valid,
            count=self._count,
            scale=self._scales[tap.name] if isinstance(self._scales, Mapping) else None,
            own_scale=self._scales == "own",
            overwrite=self._overwrite,
            with_square=self._scales is not None,
        )
        self.losses[tap.name] = self.losses[tap.name] + mse if tap.name in self.losses else mse
        if square is not None:
            self.squares[tap.name] = square


class TargetSquares:
    """Mean square of every tap's target: a running mean over optimiser steps (decay 0.9), each of all its tokens.

    A step's own mean is not known before its last micro-batch, so its losses are divided by the mean up to the step
    before; only the first step uses its own. So accumulation divides every micro-batch by the same numbers.
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
        tokens = self._sum[-1]
        mean = self._sum[:-1] / tokens.clamp(min=1)
        # A step without a counted token leaves the mean where it is.
        self.mean = mean if self.mean is None else self.mean.lerp(mean, (1 - self.decay) * (tokens > 0))
        self._sum = None

    def drop(self) -> None:
        """Forget the sums of a step that is given up."""
        self._sum = None

    def state_dict(self) -> dict[str, Tensor]:
        """The running mean and the sums of the step that is not folded yet."""
        return {key: value for key, value in (("mean", self.mean), ("sum", self._sum)) if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue where `state_dict` was taken."""
        mean, total = state.get("mean"), state.get("sum")
        self.mean = None if mean is None else mean.to(device)
        self._sum = None if total is None else total.to(device)
        self._pushes = None
