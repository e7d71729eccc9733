"""Any torch optimiser over the factors: pull and clip before its step, push after it; and Muon for the matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from ..errors import InputError
from ..factors.factors import Factors
from .muon import step_muon


class MuonAdamW(Optimizer):
    """Muon (`muon.py`) for parameters with two axes, torch's AdamW for all others, as one optimiser.

    Adam moves every element by about the learning rate, so its first steps are sign matrices, whose largest singular
    value is up to sqrt(rows x columns) learning rates. Along a teacher's massive activations that throws a calibrated
    start far off within one step. A Muon step has the same size in every direction: 0.2 sqrt(max(rows, columns))
    learning rates, which gives it the root mean square of an AdamW step, so that rates carry over between the two.
    Source: Muon is Scalable for LLM Training (arXiv 2502.16982, section 2.2).

    Args:
        params: Parameters or groups of them, as for any torch optimiser.
        momentum: Of Muon, with Nesterov's look-ahead.
        betas, eps: Of AdamW.
        weight_decay: Of both, decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both. What AdamW keeps is in this one's state."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shared = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            step_muon([p for p in group["params"] if p.ndim == 2], self.state, momentum=group["momentum"], **shared)
            if others := [p for p in group["params"] if p.ndim != 2]:
                adamw = torch.optim.AdamW(others, betas=group["betas"], eps=group["eps"], **shared)
                adamw.state = self.state
                adamw.step()
        return loss


@dataclass
class _Binding:
    """What `bind` knows of an optimiser: the factors that it trains, and which there were when its groups were made."""

    factors: Factors
    max_grad_norm: float | None
    before: dict[str, nn.Parameter]

    def held(self, optimizer: Optimizer) -> list[nn.Parameter]:
        return [p for group in optimizer.param_groups for p in group["params"]]


_BINDINGS: WeakKeyDictionary[Optimizer, _Binding] = WeakKeyDictionary()


def is_bound(optimizer: Optimizer, factors: Factors) -> bool:
    """Whether steps of this optimiser train these factors already."""
    binding = _BINDINGS.get(plain(optimizer))
    return binding is not None and binding.factors is factors


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimiser itself, without the wrapper that accelerate puts around it."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def bind(optimizer: Optimizer, factors: Factors, max_grad_norm: float | None = None) -> Optimizer:
    """Make `optimizer.step()` train the student through its factors, and return the same optimiser.

    Before each step the leaves' gradients are pulled into the factors' and, if asked, clipped to a total norm of
    `max_grad_norm`; after it the student's weights are generated anew and the gradients dropped. A closure is evaluated
    at the student of the factors as they are then. `optimizer.zero_grad()` drops the leaves' gradients too.

        optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), lr=1e-4), clone.factors, max_grad_norm=1.0)
        clone(input_ids).loss.backward()
        optimizer.step()

    A factor none of whose leaves got a gradient (an expert that no token chose) is left alone, weight decay included.
    Schedulers, `accelerate` and checkpoints see an ordinary optimiser. Several optimisers may share the factors, each
    with its own part of them: one drops the gradients of its part and of what no optimiser holds. A `GradScaler` looks
    at the gradients before the step: call `clone.factors.pull()` before `scaler.step(optimizer)`.

    Raises:
        InputError: The optimiser is bound already or holds what is no factor. In `step`: there is no gradient at all,
            a scaler has not seen the gradients, or factors were replaced (`refresh`).
    """
    plain_one, known = plain(optimizer), {id(p) for p in factors.parameters()}
    if plain_one in _BINDINGS:
        raise InputError("bind: this optimiser is bound already; a second time its gradients would be clipped twice")
    binding = _Binding(factors, max_grad_norm, dict(factors.named_parameters()))
    strangers = [p for p in binding.held(plain_one) if id(p) not in known]
    if strangers:
        raise InputError(
            f"bind: the optimiser holds {len(strangers)} parameters that are no factors (the first of shape "
            f"{list(strangers[0].shape)}), expected `clone.factors.parameters()`; the student's own weights are "
            "generated from the factors and can't be stepped themselves"
        )
    _BINDINGS[plain_one] = binding
    plain_one.register_step_pre_hook(_before_step)
    plain_one.register_step_post_hook(_after_step)
    drop = plain_one.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        # Else a batch whose gradients were dropped would still be pulled from the leaves at the next step.
        factors.pull()
        drop(set_to_none)

    plain_one.zero_grad = zero_grad  # type: ignore[method-assign]
    return optimizer


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    binding = _BINDINGS[optimizer]
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimiser
    if closure is None:
        _take_gradients(optimizer, binding)
        return None
    moved = False

    def evaluate() -> Any:
        nonlocal moved
        if moved:  # an optimiser that evaluates more than once, as LBFGS does, has changed the factors in between
            binding.factors.push(binding.factors)
        loss, moved = closure(), True
        _take_gradients(optimizer, binding)
        return loss

    return (optimizer,), {"closure": evaluate}


def _take_gradients(optimizer: Optimizer, binding: _Binding) -> None:
    scaled = vars(optimizer).get("grad_scale") is not None  # set by a GradScaler for the step of a fused optimiser
    if scaled and (
        binding.max_grad_norm is not None or any(link.leaf.grad is not None for link in binding.factors.links)
    ):
        raise InputError(
            "optimizer.step: the gradients that a GradScaler is to check are still the leaves'; call "
            "clone.factors.pull() and scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
    held = binding.held(optimizer)
    alive = {id(p) for p in binding.factors.parameters()}
    if any(id(p) not in alive for p in held):
        raise InputError(
            "optimizer.step: the clone was reparameterised since this optimiser was made, and factors that it "
            "holds are gone; call `refresh(optimizer, clone.factors)` after `clone.reparameterize(...)`"
        )
    binding.factors.pull()
    if len(held) == len(binding.factors) and all(p.grad is None for p in held):
        raise InputError("optimizer.step: no factor has a gradient; call `clone(...).loss.backward()` before it")
    if binding.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(held, binding.max_grad_norm)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    binding = _BINDINGS[optimizer]
    theirs = {
        id(p)
        for other, their in _BINDINGS.items()
        if other is not optimizer and their.factors is binding.factors
        for p in their.held(other)
    }
    # A factor that two optimisers hold is dropped too: its gradient was used.
    binding.factors.zero_grad(keep=theirs - {id(p) for p in binding.held(optimizer)})
    binding.factors.push()


def refresh(optimizer: Optimizer, factors: Factors) -> None:
    """Let a bound optimiser follow factors that were replaced (`CloneModel.reparameterize`).

    Factors that are still there keep their state, new ones start without. Each group holds what it would hold in an
    optimiser that is made anew, in the factors' own order, so that states can be loaded: a factor that was there is in
    its old group, one with an earlier one's name in that one's. A new name (a bias that had no factor of its own) joins
    the factor whose name is most like its own among those that are vectors, or matrices, as it is.

    Raises:
        InputError: The optimiser is not bound to these factors.
    """
    optimizer = plain(optimizer)
    if not is_bound(optimizer, factors):
        raise InputError("refresh: this optimiser is not bound to these factors; bind it first")
    binding = _BINDINGS[optimizer]
    groups = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    homes = {
        name: groups[id(p)] if id(p) in groups else groups.get(id(_ancestor(name, p, binding.before)))
        for name, p in factors.named_parameters()
    }
    for index, group in enumerate(optimizer.param_groups):
        names = [name for name, home in homes.items() if home == index]
        group["params"][:] = [factors[name] for name in names]
        if "param_names" in group:
            group["param_names"][:] = names
    binding.before = dict(factors.named_parameters())
    alive = {id(p) for p in factors.parameters()}
    for parameter in [p for p in optimizer.state if id(p) not in alive]:
        del optimizer.state[parameter]


def _ancestor(name: str, factor: nn.Parameter, before: dict[str, nn.Parameter]) -> nn.Parameter:
    """The earlier factor in whose group a new one belongs: that of its name, or the most alike."""
    if name in before:
        return before[name]
    alike = [other for other, p in before.items() if (p.ndim > 1) == (factor.ndim > 1)] or list(before)
    return before[max(alike, key=lambda other: _common_start(other, name))]


def _common_start(one: str, other: str) -> int:
    """Number of characters that two names begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
