"""Blocks compiled one by one with `torch.compile`, their taps intact.

A hook that writes into the world outside is lost on a compiled region, so each compiled block returns its tapped
activations beside its output, and what observes them runs outside. All blocks of a model share one function and the
same recording hooks, so that blocks of equal structure share their compiled code.

For that two things are changed for good in a compiled model: `block.forward` of every block, and the hooks of tapped
modules, which stay after a pass. What they record goes nowhere unless `observe` is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..hooks import floating, hooked
from ..objective.taps import Observer, give_copy, observe, tap_output
from ..plan.roles import TapSpec

Recorded = tuple[tuple[int, Any, Any], ...]


class CompiledBlocks:
    """The blocks of one model, compiled in place, and how their taps are observed from then on.

    Hooks that are put on modules inside the blocks later are not called, as always in compiled code.

    Args:
        blocks: Names of the blocks. taps: All that will ever be observed. width: The model's residual width.
        changed: Modules whose output is changed in place afterwards, of which the model gets a copy (`taps.observe`).
        options: Of `torch.compile`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Iterable[str],
        taps: Iterable[TapSpec],
        width: int,
        changed: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self._model, self._width = model, width
        self._observer: Observer | None = None
        self._wanted: set[str] = set()
        self._recorded: list[tuple[int, Any, Any]] = []
        self._recorders: list[Callable[..., None]] = []
        self._inside: set[str] = set()
        self._call = torch.compile(self._recording_call(), **options)
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
        for name in blocks:
            own = [tap for tap in taps if tap.module.startswith(name + ".")]
            self._inside.update(tap.name for tap in own)
            hooks += [(model.get_submodule(tap.module), self._recorder(index)) for index, tap in enumerate(own)]
            block = model.get_submodule(name)
            block.forward = self._forward(block, own)
        hooks += [(model.get_submodule(name), give_copy) for name in changed]
        self._hooks = ExitStack()  # never left: compiled code has these hooks in it
        self._hooks.enter_context(hooked(hooks, "after"))

    @contextmanager
    def observe(self, taps: Iterable[TapSpec], observer: Observer) -> Iterator[None]:
        """`taps.observe` for this model."""
        taps = list(taps)
        self._observer, self._wanted = observer, {tap.name for tap in taps}
        try:
            with observe(self._model, [t for t in taps if t.name not in self._inside], self._width, observer):
                yield
        finally:
            self._observer = None

    def _recording_call(self) -> Callable[..., tuple[Any, Recorded]]:
        recorded = self._recorded

        def call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Recorded]:
            recorded.clear()
            output = type(block).forward(block, *args, **kwargs)
            seen = tuple(recorded)
            recorded.clear()
            return output, seen

        return call

    def _recorder(self, index: int) -> Callable[..., None]:
        """The hook of the tap at this place in its block, the same object in every block."""
        recorded = self._recorded
        while len(self._recorders) <= index:

            def record(
                module: nn.Module, args: Any, kwargs: Any, output: Any, index: int = len(self._recorders)
            ) -> None:
                recorded.append((index, floating([*args, *kwargs.values()]), output))

            self._recorders.append(record)
        return self._recorders[index]

    def _forward(self, block: nn.Module, taps: list[TapSpec]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if isinstance(block, GradientCheckpointingLayer) and block.gradient_checkpointing and block.training:
                checkpoint: Any = block._gradient_checkpointing_func
                output, seen = checkpoint(lambda *inputs: self._call(block, inputs, kwargs), *args)
            else:
                output, seen = self._call(block, args, kwargs)
            self._report(taps, seen)
            return output

        return forward

    def _report(self, taps: list[TapSpec], seen: Recorded) -> None:
        for index, given, output in seen:
            tap = taps[index]
            if self._observer is not None and tap.name in self._wanted:
                shown = tap_output(tap, self._width, output)
                self._observer(tap, shown if given is None else given, shown)
