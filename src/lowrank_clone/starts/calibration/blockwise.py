"""Running a model block by block on streams that are given, so that memory does not grow with the number of tokens.

The stream is what goes from block to block: the residual stream, [batch, length, d]. A block always runs inside an
ordinary forward pass of its own model, which makes masks, rotary tables and whatever else the family hands to its
blocks; the blocks before it are skipped, and the pass is left as soon as what was asked for has been seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import InputError
from ...hooks import PassLeft, floating, hooked, leave_pass
from ...plan.layers import model_blocks


@dataclass
class Call:
    """One call of a module: `x` its first floating-point argument, `y` its first floating-point result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def x(self) -> Tensor:
        """The input, [..., d_in]."""
        return _present(floating([*self.args, *self.kwargs.values()]))

    @property
    def y(self) -> Tensor:
        """The output, [..., d_out]."""
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
    """What one run of a block showed: the calls of the watched modules, and its output unless it was left before."""

    calls: dict[str, Call] = field(default_factory=dict)
    output: Tensor | None = None

    def point(self, module: str | None) -> Tensor:
        """The stream where it enters `module`, or where it leaves the block for None."""
        tensor = self.output if module is None else self.calls[module].x
        assert tensor is not None
        return tensor


class BlockRunner:
    """The blocks of one model, run one at a time. Made by `run_blockwise`, which checks that they can be.

    Args:
        ids: [batch, length] on the model's device, for one whole pass that shows what the blocks return.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self.model = model
        self.names = model_blocks(model)
        self._modules = [model.get_submodule(name) for name in self.names]
        outputs = {name: call.output for name, call in calls_of_blocks(model, ids)}
        # A block returns the stream, or a tuple that begins with it.
        self._lengths = [len(out) if isinstance(out := outputs.get(name), tuple) else 0 for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def first_stream(self, ids: Tensor) -> Tensor:
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
        trace = BlockTrace()

        def enter(name: str, call: Call) -> None:
            trace.calls[name] = call
            if name == stop:
                leave_pass()

        def end(name: str, call: Call) -> None:
            trace.output = call.y
            leave_pass()

        inside = dict.fromkeys([*watch, *([] if stop is None else [stop])])
        with (
            watch_calls(self.model, inside, enter, "before"),
            watch_calls(self.model, inside, trace.calls.__setitem__),
            watch_calls(self.model, [self.names[index]], end),
            self._skipped(index, stream),
        ):
            _run(self.model, ids)
        return trace

    def next_stream(self, index: int, ids: Tensor, stream: Tensor) -> Tensor:
        """The output of block `index` for its input `stream`, both [batch, length, d]."""
        return self.block(index, ids, stream).point(None)

    def head_input(self, ids: Tensor, stream: Tensor) -> Tensor:
        """What the LM head is given, [batch, length, d], for the last block's output `stream`."""
        with self._skipped(len(self), stream):
            return _first_call(self.model, self.model.get_output_embeddings(), ids).x

    @contextmanager
    def _skipped(self, count: int, stream: Tensor) -> Iterator[None]:
        """Let the first `count` blocks return `stream` instead of running."""
        attributes = [vars(block) for block in self._modules[:count]]
        kept = [own.get("forward") for own in attributes]
        for own, length in zip(attributes, self._lengths, strict=False):
            result = (stream, *[None] * (length - 1)) if length else stream
            own["forward"] = lambda *_, result=result, **__: result
        try:
            yield
        finally:
            for own, forward in zip(attributes, kept, strict=True):
                if forward is None:
                    del own["forward"]
                else:
                    own["forward"] = forward


def run_blockwise(model: PreTrainedModel, ids: Tensor) -> BlockRunner:
    """The runner of a model's blocks.

    Args:
        ids: [batch, length] on the model's device, for a trial.

    Raises:
        InputError: Its blocks can't be run one at a time.
    """
    reason = can_run_blockwise(model, ids)
    if reason is not None:
        raise InputError(
            f"start: the blocks of `{model.config.model_type}` can't be run one at a time, which a calibrated start "
            f"needs: {reason}; use `channels` or `random`"
        )
    return BlockRunner(model, ids)


@torch.no_grad()
def can_run_blockwise(model: PreTrainedModel, ids: Tensor) -> str | None:
    """Why the blocks of a model can't be run one at a time, or None if they can.

    They can if they run once each, in their order, if each one's output is the next one's input, and if each gives the
    same when those before it are skipped.

    Args:
        ids: [batch, length] on the model's device.
    """
    calls, runner = calls_of_blocks(model, ids), BlockRunner(model, ids)
    if not runner.names:
        return "it has no list of blocks"
    if [name for name, _ in calls] != runner.names:
        return "they do not run once each, in their order"
    for index, (name, call) in enumerate(calls):
        try:
            output = runner.next_stream(index, ids, call.x)
        except Exception as error:  # each family fails in its own way without what its earlier blocks leave
            return f"`{name}` alone fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        near = 1e-2 if call.y.element_size() == 2 else 1e-4
        if not torch.allclose(output, call.y, rtol=near, atol=near * float(call.y.abs().max())):
            return f"`{name}` gives another output alone than inside the model"
        if index + 1 < len(calls) and not torch.equal(calls[index + 1][1].x, call.y):
            return f"the output of `{name}` is not the input of `{calls[index + 1][0]}`"
    last = calls[-1][1].y
    if runner.head_input(ids, last).shape[:-1] != last.shape[:-1]:
        return "the LM head is given other positions than the last of them returns"
    return None


def watch_calls(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Call], None], when: Literal["before", "after"] = "after"
) -> AbstractContextManager[None]:
    """Tell `see` the name and the call of each of these modules, before it runs or after it has."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, *output: see(name, Call(args, kwargs, *output))

    return hooked([(model.get_submodule(name), hook_of(name)) for name in names], when)


def first_stream(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The stream into the first block, [batch, length, d]."""
    return _first_call(model, model.get_submodule(model_blocks(model)[0]), ids).x


def _first_call(model: PreTrainedModel, module: nn.Module, ids: Tensor) -> Call:
    """The first call of a module, which ends the pass."""
    caught: list[Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(Call(args, kwargs))
        leave_pass()

    with hooked([(module, hook)], "before"):
        _run(model, ids)
    return caught[0]


@torch.no_grad()
def calls_of_blocks(model: PreTrainedModel, ids: Tensor) -> list[tuple[str, Call]]:
    """Name and call of each block in one whole pass, in the order in which they end."""
    calls: list[tuple[str, Call]] = []
    with watch_calls(model, model_blocks(model), lambda name, call: calls.append((name, call))):
        model(input_ids=ids, use_cache=False)
    return calls


def _run(model: PreTrainedModel, ids: Tensor) -> None:
    with suppress(PassLeft):
        model(input_ids=ids, use_cache=False)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
