"""Running a model block by block on streams kept in files, so that memory does not grow with the number of tokens.

The stream is what goes from block to block: the residual stream, [batch, length, d]. A block always runs inside an
ordinary forward pass of its own model, which makes masks, rotary tables and whatever else the family hands to its
blocks; the blocks before it are skipped, and the pass is left as soon as what was asked for has been seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..hooks import PassLeft, floating, hooked, leave_pass
from ..plan.layers import model_blocks


@dataclass
class Call:
    """One call of a module: `x` its first floating-point argument, `y` its first floating-point result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def x(self) -> Tensor:
        """The first floating-point argument."""
        return _present(floating([*self.args, *self.kwargs.values()]))

    @property
    def y(self) -> Tensor:
        """The first floating-point result."""
        return _present(floating(self.output))

    def decoded(self, z: Tensor, dtype: torch.dtype) -> Call:
        """This call with `x Z^T` in the place of `x`, and everything in `dtype`."""

        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return (value @ z.mT if value is self.x else value).to(dtype)

        return Call(tuple(map(convert, self.args)), {key: convert(value) for key, value in self.kwargs.items()})

    def run(self, module: nn.Module) -> Call:
        """This call made to `module`."""
        return Call(self.args, self.kwargs, module(*self.args, **self.kwargs))


@dataclass
class BlockTrace:
    """What one replayed block showed: the calls of the watched modules, and its output unless it was left before."""

    calls: dict[str, Call] = field(default_factory=dict)
    out: Tensor | None = None

    def at(self, module: str | None) -> Tensor:
        """The input of `module`, or the block's output for None."""
        tensor = self.out if module is None else self.calls[module].x
        assert tensor is not None
        return tensor


class BlockRunner:
    """The blocks of one model, run one at a time.

    Args:
        ids: [batch, length] on the model's device, for one trial that shows whether its blocks can be replayed.

    Raises:
        InputError: The model is no chain of blocks, each of which makes the next one's input of its own.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self.model = model
        self.names = model_blocks(model)
        self.blocks = [model.get_submodule(name) for name in self.names]
        self._extra: list[int | None] = [None] * len(self.blocks)
        self._check(ids)

    def start(self, ids: Tensor) -> Tensor:
        """The stream into the first block, [batch, length, d]."""
        return first_stream(self.model, ids)

    def block(
        self, index: int, ids: Tensor, stream: Tensor, watch: Iterable[str] = (), stop: str | None = None
    ) -> BlockTrace:
        """Run one block on its input `stream`.

        Args:
            watch: Modules (full names) whose calls are wanted; of those that run several times, the last.
            stop: A module on entry to which the pass is left; its call has no output then.
        """
        seen = BlockTrace()

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.calls[name] = Call(args, kwargs)
                if name == stop:
                    leave_pass()

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                seen.calls[name] = Call(args, kwargs, output)

            return hook

        def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen.out = Call(args, kwargs, output).y
            leave_pass()

        watched = {name: self.model.get_submodule(name) for name in [*watch, *([] if stop is None else [stop])]}
        leaving = [*((module, leave(name)) for name, module in watched.items()), (self.blocks[index], end)]
        with (
            hooked([(module, enter(name)) for name, module in watched.items()], "before"),
            hooked(leaving, "after"),
            self._skipped(index, stream),
        ):
            _run(self.model, ids)
        return seen

    def head(self, ids: Tensor, stream: Tensor) -> Tensor:
        """What the LM head is given, [batch, length, d], for the last block's output `stream`."""
        with self._skipped(len(self.blocks), stream):
            return _on_entry(self.model, self.model.get_output_embeddings(), ids).x

    @contextmanager
    def _skipped(self, count: int, stream: Tensor) -> Iterator[None]:
        """Let the first `count` blocks return `stream` instead of running."""
        with ExitStack() as restore:
            for block, extra in zip(self.blocks[:count], self._extra, strict=False):
                restore.callback(_set_forward, block, block.__dict__.get("forward"))
                result = stream if extra is None else (stream, *[None] * extra)
                _set_forward(block, lambda *_, result=result, **__: result)
            yield

    @torch.no_grad()
    def _check(self, ids: Tensor) -> None:
        """One whole pass: how blocks return the stream, and whether replaying them gives the same."""
        calls: list[tuple[str, Call]] = []
        kind = self.model.config.model_type
        refusal = InputError(
            f"start: the blocks of `{kind}` can't be run one at a time, which a calibrated start needs; "
            "use `channels` or `random`"
        )
        with watch_calls(self.model, self.names, lambda name, call: calls.append((name, call))):
            self.model(input_ids=ids, use_cache=False)
        if not self.names or [name for name, _ in calls] != self.names:
            raise refusal
        self._extra = [len(call.output) - 1 if isinstance(call.output, tuple) else None for _, call in calls]
        for index, (_, call) in enumerate(calls):
            try:
                out = self.block(index, ids, call.x).out
            except Exception as error:  # each family fails in its own way without what its earlier blocks leave
                raise refusal from error
            follows = index + 1 == len(calls) or torch.equal(calls[index + 1][1].x, call.y)
            if (
                out is None
                or not follows
                or not torch.allclose(out, call.y, rtol=1e-2, atol=1e-2 * float(call.y.abs().max()))
            ):
                raise refusal


class Spool:
    """Streams of all batches, each in a temporary file without a name that is gone with this object."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._items: dict[int, Tensor] = {}

    def __setitem__(self, index: int, stream: Tensor) -> None:
        if index not in self._items:
            with tempfile.NamedTemporaryFile() as file:
                flat = torch.from_file(file.name, shared=True, size=stream.numel(), dtype=stream.dtype)
            self._items[index] = flat.view(stream.shape)
        self._items[index].copy_(stream)

    def __getitem__(self, index: int) -> Tensor:
        return self._items[index].to(self._device, copy=True)


@contextmanager
def watch_calls(model: nn.Module, names: Iterable[str], see: Callable[[str, Call], None]) -> Iterator[None]:
    """Tell `see` the name and the call of each of these modules whenever it has run."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: see(name, Call(args, kwargs, output))

    with hooked([(model.get_submodule(name), hook_of(name)) for name in names], "after"):
        yield


def first_stream(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The stream into the first block, [batch, length, d]."""
    return _on_entry(model, model.get_submodule(model_blocks(model)[0]), ids).x


def _on_entry(model: PreTrainedModel, module: nn.Module, ids: Tensor) -> Call:
    """The first call of a module, which ends the pass."""
    caught: list[Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(Call(args, kwargs))
        leave_pass()

    with hooked([(module, hook)], "before"):
        _run(model, ids)
    return caught[0]


def _run(model: PreTrainedModel, ids: Tensor) -> None:
    with suppress(PassLeft):
        model(input_ids=ids, use_cache=False)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _set_forward(block: nn.Module, forward: Any) -> None:
    if forward is None:
        block.__dict__.pop("forward", None)
    else:
        block.__dict__["forward"] = forward
