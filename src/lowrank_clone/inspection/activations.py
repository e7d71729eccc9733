"""Relative error of every tapped activation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..factors.bases import Projected
from ..factors.factors import Factors
from ..factors.parameterize import TARGET
from ..hooks import floating, hooked
from ..plan.roles import Plan, TapSpec
from ..precision import wide_dtype
from .passes import forward, token_batches


@dataclass(frozen=True)
class TapError:
    """`error` is ||s - t||^2 / ||t||^2 over all tokens, or None where the two can't be compared."""

    tap: TapSpec
    error: float | None

    @property
    def place(self) -> str:
        """The tapped module's name inside its layer, which is the same in every layer."""
        return place_in_layer(self.tap.module, self.tap.layer)


@torch.no_grad()
def relative_errors(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    factors: Factors,
    blocks: Sequence[Any],
    progress: bool = False,
) -> tuple[TapError, ...]:
    """Relative squared error of every tap of the plan, whatever taps were trained on.

        error = sum_i || s_i - t_i ||^2 / sum_i || t_i ||^2        over the n tokens; t_i Z for t_i at a write

    A write that has no Z any more (a baseline, or trained at teacher width and then `dense`) is not compared, nor is a
    module that shows no such output in both models. A target that is zero throughout has no relative error either.
    """
    compared = _Errors(write_projections(factors, plan))
    taps = [tap for tap in plan.taps if tap.kind == "read" or tap.name in compared.projections]
    for ids in token_batches(blocks, student.device, "measuring activations", progress):
        with _watch(teacher, taps, plan.teacher_width, compared.keep):
            forward(teacher, ids)
        with _watch(student, taps, plan.student_width, compared.compare):
            forward(student, ids)
        compared.drop_kept()
    return tuple(TapError(tap, compared.error(tap.name)) for tap in plan.taps)


class _Errors:
    """Sums of squares by tap name. A tap whose outputs do not pair up, token by token, is left without an error."""

    def __init__(self, projections: Mapping[str, Tensor]) -> None:
        self.projections = projections
        self._targets: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._missed: defaultdict[str, float] = defaultdict(float)
        self._total: defaultdict[str, float] = defaultdict(float)
        self._unpaired: set[str] = set()

    def keep(self, tap: TapSpec, output: Tensor) -> None:
        # A copy: a family may change the output in place after the module has returned it (OLMo's clip_qkv).
        self._targets[tap.name].append(output.clone())

    def compare(self, tap: TapSpec, output: Tensor) -> None:
        target = self._targets[tap.name].pop(0) if self._targets[tap.name] else output[:0]
        if len(target) != len(output):  # experts that were routed other tokens
            self._unpaired.add(tap.name)
            return
        output, target = output.to(wide_dtype(output.dtype)), target.to(wide_dtype(output.dtype))
        if tap.kind == "write":
            target = target @ self.projections[tap.name].to(target.dtype)
        self._missed[tap.name] += (output - target).square().sum().item()
        self._total[tap.name] += target.square().sum().item()

    def drop_kept(self) -> None:
        self._unpaired |= {name for name, left in self._targets.items() if left}
        self._targets.clear()

    def error(self, name: str) -> float | None:
        known = name not in self._unpaired and self._total[name] > 0
        return self._missed[name] / self._total[name] if known else None


def write_projections(factors: Factors, plan: Plan) -> dict[str, Tensor]:
    """The Z [d_T, d_S] of each write that has one: its target's leaf's factor, else its projected weight's."""
    links = {link.name: link for link in factors.links}
    found: dict[str, Tensor] = {}
    for role in plan.of_kind("write"):
        link = links.get(role.name + TARGET, links[role.name])
        if link.name.endswith(TARGET) or isinstance(link.basis, Projected):
            found[role.name] = factors[link.factor].detach()
    return found


def place_in_layer(module: str, layer: int) -> str:
    """`module`'s name below its layer: `model.layers.3.mlp.up_proj` in layer 3 is `mlp.up_proj`."""
    return module.partition(f".{layer}.")[2] or module


def _watch(
    model: nn.Module, taps: Iterable[TapSpec], width: int, see: Callable[[TapSpec, Tensor], None]
) -> AbstractContextManager[None]:
    """Call `see(tap, output [n, w])` whenever a tapped module runs and shows an output of the expected width."""

    def hook_of(tap: TapSpec) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            shown = floating(output, width if tap.kind == "write" else tap.inner)
            if shown is not None:
                see(tap, shown.flatten(0, -2))

        return hook

    return hooked([(model.get_submodule(tap.module), hook_of(tap)) for tap in taps], "after")
