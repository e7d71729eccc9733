"""Taps: reading activations out of a stock model through hooks that are gone when the forward pass is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..plan.roles import TapSpec

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
