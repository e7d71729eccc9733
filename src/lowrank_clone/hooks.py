"""Hooks on modules that are gone when their context is left: the one place where forward hooks are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import nn


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
