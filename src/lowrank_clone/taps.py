"""Taps: reading activations out of a stock model through hooks that are gone when the forward pass is over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers import PreTrainedModel

from .errors import InputError
from .losses import Head, tap_mse
from .plan import TapSpec
from .recompute import beside_the_record

Observer = Callable[[TapSpec, Tensor, Tensor], None]
# How one model is observed: `observe` without its model and width, or its counterpart for compiled blocks.
Watch = Callable[[Iterable[TapSpec], Observer], AbstractContextManager[None]]


@contextmanager
def observe(model: nn.Module, taps: Iterable[TapSpec], width: int, observer: Observer) -> Iterator[None]:
    """Call `observer(tap, input [n, w_in], output [n, w])` whenever a tapped module of `model` runs.

    A module that runs again after this context is left, as gradient checkpointing makes it do, is not seen again.
    `width` is the model's residual width, that of the writes' outputs.
    """
    with ExitStack() as hooks:
        for tap in taps:
            module = model.get_submodule(tap.module)
            hooks.callback(module.register_forward_hook(_hook(tap, width, observer)).remove)
        yield


@contextmanager
def calls(model: nn.Module, taps: Iterable[TapSpec]) -> Iterator[set[str]]:
    """Names of the taps whose module is called in this context; some only hold a weight that their parent uses."""
    seen: set[str] = set()
    with ExitStack() as hooks:
        for tap in taps:
            note = partial(lambda name, *_: seen.add(name), tap.name)
            hooks.callback(model.get_submodule(tap.module).register_forward_hook(note).remove)
        yield seen


def _hook(tap: TapSpec, width: int, observer: Observer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        shown = tap_output(tap, width, output)
        observer(tap, args[0] if args else shown, shown)

    return hook


def tap_output(tap: TapSpec, width: int, output: Any) -> Tensor:
    """The tapped tensor [n, w] among what the tap's module returned in a model of residual width `width`.

    Raises:
        InputError: There is none of the expected width.
    """
    expected = width if tap.kind == "write" else tap.inner
    candidates = output if isinstance(output, (tuple, list)) else (output,)
    for tensor in candidates:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-1] == expected:
            return tensor.reshape(-1, expected)
    shapes = [list(t.shape) for t in candidates if isinstance(t, Tensor)]
    raise InputError(
        f"tap `{tap.name}`: module `{tap.module}` returned {shapes}, expected a tensor of {expected} channels; "
        f"leave this tap out"
    )


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
        with watch(self._taps, self._compare_beside):
            yield
        for tap in self._taps:
            if tap.name not in self.losses or self._outputs[tap.name]:
                raise InputError(
                    f"tap `{tap.name}`: module `{tap.module}` did not run in both models; leave this tap out"
                )

    def _compare_beside(self, tap: TapSpec, given: Tensor, output: Tensor) -> None:
        with beside_the_record():
            self._compare(tap, given, output)

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


class HeadInput:
    """What the LM head was given: `hidden` [batch, length, d]."""

    hidden: Tensor


@contextmanager
def head_input(model: PreTrainedModel) -> Iterator[HeadInput]:
    """Catch the final hidden states on their way into the LM head, which then sees the last position only.

    The model runs as it is, whatever it does before the head, and never builds its [batch, length, V] logits.
    """
    caught = HeadInput()

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.hidden = args[0]
        return (args[0][..., -1:, :], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        yield caught
    finally:
        handle.remove()


@torch.no_grad()
def read_head(model: PreTrainedModel) -> Head:
    """How this model turns its LM head's output into logits.

    Families scale it (Granite, Cohere) or cap it (Gemma 2), some by constants that they derive from `hidden_size`. So
    known numbers are put in the place of the head's output in one short forward pass: small ones show the scale, huge
    ones the cap, those between are the check.

    Raises:
        InputError: The logits are no scaled or capped output of the head.
    """
    head = model.get_output_embeddings()
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    sizes = torch.tensor([1e-3, 1e6, 1.0, 10.0, 100.0], dtype=wide, device=model.device)
    probe = sizes.view(1, -1, 1) * torch.linspace(-1, 1, model.config.vocab_size, dtype=wide, device=model.device)
    handle = head.register_forward_hook(lambda module, args, output: probe)
    training = model.training
    try:
        ids = torch.zeros(1, len(sizes), dtype=torch.long, device=model.device)
        logits = model.eval()(input_ids=ids, use_cache=False).logits.double()
    finally:
        handle.remove()
        model.train(training)
    shown = probe.double()
    scale = float((logits[0, 0] @ shown[0, 0]) / (shown[0, 0] @ shown[0, 0]))
    scale = 1.0 if abs(scale - 1) < 1e-4 else scale
    cap = float(logits[0, 1].max())
    softcap = None if abs(cap - 1e6 * scale) < 1e-2 * cap else cap
    expected = shown * scale if softcap is None else softcap * torch.tanh(shown * scale / softcap)
    if not torch.allclose(expected, logits, rtol=1e-2, atol=1e-5):
        raise InputError(
            f"`{model.config.model_type}`: its logits are no scaled or capped output of its LM head, so the loss can't "
            "be taken from hidden states; this family is not supported"
        )
    return Head(head.weight, getattr(head, "bias", None), scale, softcap)


def linear_of(model: PreTrainedModel, tap: TapSpec) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear module behind a tap.

    Raises:
        InputError: It is no linear module.
    """
    module = model.get_submodule(tap.module)
    if not isinstance(module, nn.Linear):
        raise InputError(
            f"attn_out_tap: `teacher` needs linear attention outputs; `{tap.module}` is none; use `student`"
        )
    return module.weight, module.bias
