"""Settings that change while a run goes: ramps, and switches of parameterisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainerCallback

from ..errors import InputError
from ..factors.parameterize import check_start
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


RAMPS = ("temperature", "kl_weight")


@dataclass
class MethodSchedule(TrainerCallback):
    """Follow the recipe's ramps and switches at the beginning of each optimiser step.

    Nothing else of `method` is set: what is no ramp and no switch stays what the clone was made with.

    Raises:
        InputError: When training begins: the clone has groups that can't become what `method` says for this step, or a
            switch would come after the last step.
    """

    method: MethodConfig

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the clone and the number of steps, and set the ramps for an evaluation before the first step."""
        clone, done = kwargs["model"], max(state.global_step - 1, 0)  # the last step of a run that goes on
        named = choices_by_group(self.method)
        theirs = {group: kind for group, kind in clone.kinds.items() if group in named}
        check_start(theirs, kinds_at(self.method, done), "this clone")
        check_switches(self.method, state.max_steps)
        self._set_ramps(clone, done, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what this step needs."""
        clone = kwargs["model"]
        self._set_ramps(clone, state.global_step, state.max_steps)
        kinds = kinds_at(self.method, state.global_step)
        changed = {group: kind for group, kind in kinds.items() if clone.kinds[group] != kind}
        if changed:
            clone.reparameterize(changed)
            refresh(kwargs["optimizer"], clone.factors)

    def _set_ramps(self, clone: Any, step: int, steps: int) -> None:
        values = {name: getattr(self.method, name) for name in RAMPS}
        ramps = {name: value_at_step(value, step, steps) for name, value in values.items() if isinstance(value, Ramp)}
        if self.method.baseline == "scratch":  # there is no KL to weigh
            ramps.pop("kl_weight", None)
        clone.objective = replace(clone.objective, **ramps)


def check_switches(method: MethodConfig, max_steps: int) -> None:
    """Refuse a switch that would never come.

    Raises:
        InputError: It names the group, its step and the run's number of steps.
    """
    for group, choice in choices_by_group(method).items():
        if isinstance(choice, Switch) and choice.from_step >= max_steps:
            raise InputError(
                f"method.parameterization.{group}.from_step: got {choice.from_step}, expected less than the run's "
                f"{max_steps} steps"
            )
