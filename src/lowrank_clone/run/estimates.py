"""What the cost model says of a recipe, and what to turn where a run does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..cost.estimate import Cost, estimate
from ..errors import InputError, one_line
from ..execution.checkpointing import checkpointing_options
from ..plan.roles import Plan
from ..recipe.method import clone_settings, last_kinds
from ..recipe.schema import Ramp, Recipe
from ..recipe.training import batch_sizes, training_arguments

# What PyTorch says of a CPU's memory, for which it has no exception of its own.
_CPU = "DefaultCPUAllocator: can't allocate memory"
GIB = 2**30


def recomputation(arguments: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """What the activation checkpointing of these training arguments is to the cost model.

    Raises:
        InputError: Its options are not usable.
    """
    # The second is transformers' older name of the first.
    names = ("activation_checkpointing", "gradient_checkpointing")
    if not any(arguments.get(name) for name in names):
        return {"recompute": "nothing"}
    options: dict[str, Any] = next((given for name in names if (given := arguments.get(f"{name}_kwargs"))), {})
    checkpointing_options(plan.student_config, options)
    return {"recompute": options.get("recompute", "all"), "every_n_layers": options.get("every_n_layers", 1)}


def estimator(recipe: Recipe, plan: Plan, arguments: Mapping[str, Any]) -> Callable[..., Cost]:
    """`estimate` with a recipe's settings, any of which can be given anew; recomputation is left to the caller.

    Args:
        arguments: The recipe's, from `training_arguments`.
    """
    batch, accumulation = batch_sizes(recipe)
    settings = clone_settings(plan, recipe.method)
    objective = settings["objective"]
    if isinstance(recipe.method.kl_weight, Ramp):  # which may begin at 0
        objective = replace(objective, kl_weight=max(recipe.method.kl_weight.start, recipe.method.kl_weight.end))
    return partial(
        estimate,
        plan,
        micro_batch=batch,
        sequence_length=recipe.data.sequence_length,
        accumulation=accumulation,
        dtype=torch.float32 if recipe.student.dtype == "float32" else torch.bfloat16,
        objective=objective,
        parameterization=last_kinds(plan, recipe.method),
        taps=list(filter(settings["taps"], plan.taps)),
        optimizer_states=1 if arguments.get("muon", False) else 2,
    )


@contextmanager
def memory_advice(recipe: Recipe, plan: Plan) -> Iterator[None]:
    """Turn running out of memory into one line that says what would make it fit.

    Raises:
        InputError: It names each setting that saves memory, and how many GiB by the cost model.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU not in str(error):
            raise
        peak, ways = savings(recipe, plan)
        listed = "; ".join(f"{way} saves about {saved / GIB:.3g} GiB" for way, saved in ways.items())
        raise InputError(
            f"out of memory: this recipe needs about {peak / GIB:.3g} GiB in each process ({one_line(error, 200)}). "
            f"{listed or 'No setting saves much; use a smaller student or a larger device'}. See `lrc plan`"
        ) from error


def savings(recipe: Recipe, plan: Plan) -> tuple[float, dict[str, float]]:
    """The peak in bytes by the cost model, and how many each setting that is not made yet saves, the most first."""
    arguments = training_arguments(recipe)
    recomputed, estimated = recomputation(arguments, plan), estimator(recipe, plan, arguments)
    peak = estimated(**recomputed).peak_bytes
    batch, accumulation = batch_sizes(recipe)
    smaller = max(1, batch // 4)
    ways: dict[str, dict[str, Any]] = {}
    if batch > 1:
        label = (
            f"training.per_device_train_batch_size={smaller} with training.gradient_accumulation_steps="
            f"{accumulation * batch // smaller}"
        )
        ways[label] = {"micro_batch": smaller, "accumulation": accumulation * batch // smaller}
    if recomputed["recompute"] == "nothing":
        ways["training.activation_checkpointing=true"] = {"recompute": "all"}
    if recipe.student.dtype == "float32":
        ways["student.dtype=bfloat16 and teacher.dtype=bfloat16"] = {"dtype": torch.bfloat16}
    if not arguments.get("muon", False):
        ways["training.muon=true"] = {"optimizer_states": 1}
    ways[f"data.sequence_length={recipe.data.sequence_length // 2}"] = {
        "sequence_length": recipe.data.sequence_length // 2
    }
    saved = {way: peak - estimated(**(recomputed | change)).peak_bytes for way, change in ways.items()}
    return peak, {way: saved[way] for way in sorted(saved, key=lambda way: -saved[way]) if saved[way] > 0.01 * peak}
