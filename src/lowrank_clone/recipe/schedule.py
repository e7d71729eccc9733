"""Settings that change while a run goes: ramps, and switches of parameterisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainerCallback

from ..objective.objective import Objective
from ..training.optim import refresh
from .schema import MethodConfig, Ramp, Switch


def kinds_at(method: MethodConfig, step: int | None) -> dict[str, str]:
    """The kind of each group that the recipe names, at an optimiser step; None for after the last."""
    kinds: dict[str, str] = {}
    for group, choice in choices_by_group(method).items():
        if isinstance(choice, Switch):
            kinds[group] = choice.kind if step is None or step >= choice.from_step else "projected"
        else:
            kinds[group] = choice
    return kinds


def choices_by_group(method: MethodConfig) -> Mapping[str, Any]:
    """What the recipe chooses for each group: a kind, or a switch to one."""
    return {} if isinstance(method.parameterization, str) else method.parameterization


def value_at_step(value: float | Ramp, step: int, steps: int) -> float:
    """A setting at one of `steps` optimiser steps: itself, or linearly between its ends."""
    if isinstance(value, Ramp):
        return value.start + (value.end - value.start) * min(step / max(steps - 1, 1), 1.0)
    return float(value)


def objective_at(method: MethodConfig, step: int, steps: int) -> Objective:
    """The recipe's objective at one of `steps` optimiser steps."""
    fields: dict[str, Any] = {field.name: getattr(method, field.name) for field in dataclasses.fields(Objective)}
    ramps = {name: value for name, value in fields.items() if isinstance(value, Ramp)}
    return Objective(**fields | {name: value_at_step(ramp, step, steps) for name, ramp in ramps.items()})


@dataclass
class MethodSchedule(TrainerCallback):
    """Follow the recipe's ramps and switches at the beginning of each optimiser step."""

    method: MethodConfig

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what this step needs."""
        clone = kwargs["model"]
        now = objective_at(self.method, state.global_step, state.max_steps)
        clone.objective = replace(clone.objective, temperature=now.temperature)
        if self.method.baseline != "scratch":
            clone.objective = replace(clone.objective, kl_weight=now.kl_weight)
        kinds = kinds_at(self.method, state.global_step)
        changed = {group: kind for group, kind in kinds.items() if clone.kinds[group] != kind}
        if changed:
            clone.reparameterize(changed)
            refresh(kwargs["optimizer"], clone.factors)
