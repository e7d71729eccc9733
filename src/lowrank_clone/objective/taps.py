"""Taps: reading activations out of a stock model through hooks that are gone when the forward pass is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from ..errors import InputError
from ..hooks import floating, hooked
from ..plan.roles import TapSpec

Observer = Callable[[TapSpec, Tensor, Tensor], None]
# How one model is observed: `observe` without its model, width and copies, or its counterpart for compiled blocks.
Watch = Callable[[Iterable[TapSpec], Observer], AbstractContextManager[None]]


def chosen(taps: Iterable[TapSpec], choose: Callable[[TapSpec], bool] | None) -> list[TapSpec]:
    """The taps that a function of the user's picks, or all.

    Raises:
        InputError: It is no function.
    """
    if choose is not None and not callable(choose):
        raise InputError(
            f"taps: got {choose!r}, expected a function that says of each tap of the plan whether it is compared, for "
            "instance `lambda tap: tap.layer > 3`; no tap at all is clone_weight=0"
        )
    return [tap for tap in taps if choose is None or choose(tap)]


@contextmanager
def observe(
    model: nn.Module, taps: Iterable[TapSpec], width: int, observer: Observer, changed: Iterable[str] | None = None
) -> Iterator[None]:
    """Call `observer(tap, input [n, w_in], output [n, w])` whenever a tapped module of `model` runs.

    A module that runs again after this context is left, as gradient checkpointing makes it do, is not seen again.

    Args:
        width: The model's residual width, that of the writes' outputs.
        changed: Modules whose output the model changes in place afterwards (`probe.py`). The model is given a copy of
            it, so that what was observed stays what the module returned, and a checkpoint that keeps it finds it
            unchanged. Where they are not given, every tapped module's caller is given a copy.
    """
    taps = list(taps)
    tapped = dict.fromkeys(tap.module for tap in taps)
    copied = tapped if changed is None else dict.fromkeys(changed)
    hooks = [(model.get_submodule(t.module), _hook(t, width, observer, t.module in copied)) for t in taps]
    copies = [(model.get_submodule(name), give_copy) for name in copied if name not in tapped]
    with hooked(hooks + copies, "after"):
        yield


def give_copy(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """A hook that lets the module's caller have a copy of what it returned."""
    return tree_map_only(Tensor, torch.clone, output)


def _hook(tap: TapSpec, width: int, observer: Observer, copy: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        shown = tap_output(tap, width, output)
        given = floating([*args, *kwargs.values()])
        observer(tap, shown if given is None else given, shown)
        return give_copy(module, args, kwargs, output) if copy else None

    return hook


def tap_output(tap: TapSpec, width: int, output: Any) -> Tensor:
    """The tapped tensor [n, w] among what the tap's module returned in a model of residual width `width`.

    Raises:
        InputError: There is none of the expected width.
    """
    expected = width if tap.kind == "write" else tap.inner
    shown = floating(output, expected)
    if shown is not None:
        return shown.reshape(-1, expected)
    shapes = [list(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)]
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
