"""Hooks on modules that are gone when their context is left: the one place where forward hooks are registered.

Also eval mode for a while, and the two questions that every hook has: which tensor of a module's arguments or results
is meant, and how a pass is left from inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NoReturn

from torch import Tensor, nn


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], when: Literal["before", "after"]) -> Iterator[None]:
    """Call each hook `before` its module runs, or `after` it.

    Hooks take `(module, args, kwargs)` before and `(module, args, kwargs, output)` after; what they return replaces
    the arguments, as `(args, kwargs)`, or the output, as for torch's own hooks with keyword arguments.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
            stack.callback(register(hook, with_kwargs=True).remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards every one of its modules in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class PassLeft(Exception):
    """Raised in a hook to leave the forward pass; whoever started the pass suppresses it."""


def leave_pass(*_: Any) -> NoReturn:
    """A hook that leaves the forward pass; run the model inside `suppress(PassLeft)`."""
    raise PassLeft


def floating(values: Any, width: int | None = None) -> Tensor | None:
    """The tensor that is meant by a module's arguments or results: the first floating-point one, or None.

    Args:
        values: A tensor, or several values as modules take and return them (tuple or list).
        width: How many channels (last axis) it has to have; any number unless given.
    """
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if isinstance(value, Tensor) and value.is_floating_point() and width in (None, value.shape[-1]):
            return value
    return None
