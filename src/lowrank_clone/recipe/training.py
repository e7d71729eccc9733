"""From the recipe's `training` section to `CloneArguments`: names, types and ranges, and the length in steps."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from ..errors import InputError
from ..training.options import WITHOUT_WARMUP, check_option
from ..training.ranges import RANGES
from .fields import training_fields
from .messages import unknown_key, wrong_value
from .schema import Recipe


def check_training_argument(key: str, value: Any) -> None:
    """Check one field of `CloneArguments` without importing it.

    Raises:
        InputError: There is no such field, its value has the wrong type or is out of range, or a clone has no use for
            it.
    """
    if key not in training_fields():
        raise unknown_key(f"training.{key}", reason="it is no field of transformers.TrainingArguments either")
    try:
        # Of pydantic's strict modes only the one for JSON takes a list for a tuple and an integer for a number.
        _adapter(key).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(wrong_value(("training", key), value, error.errors())) from None
    check_option(key, value, training_fields()[key].default)


@functools.cache
def _adapter(key: str) -> TypeAdapter[Any]:
    hint = training_fields()[key].hint
    if key in RANGES:
        limit = RANGES[key]
        hint = Annotated[hint, AfterValidator(lambda value: value if value is None else limit(value))]
    return TypeAdapter(hint)


def training_arguments(recipe: Recipe, world_size: int = 1) -> dict[str, Any]:
    """Keyword arguments for `CloneArguments`: the recipe's own, `total_tokens` turned into `max_steps` for `world_size`
    processes, and where the recipe is silent what suits a run of this length (`run_defaults`). A run without a length
    reads its text once.

    From a calibrated start matrices are trained with Muon unless the recipe names an optimiser, since AdamW's first
    steps undo such a start at its usual rates (see `optim.MuonAdamW`).
    """
    arguments, method = dict(recipe.training.arguments), recipe.method
    if method.init == "calibrated" and method.start_from is None and method.baseline is None:
        arguments.setdefault("muon", "optim" not in arguments)
    if recipe.training.total_tokens is not None:
        sequences = math.prod(batch_sizes(recipe)) * world_size
        arguments["max_steps"] = math.ceil(recipe.training.total_tokens / (sequences * recipe.data.sequence_length))
    elif arguments.get("max_steps", -1) <= 0:
        arguments.setdefault("num_train_epochs", 1.0)
    return run_defaults(arguments) | arguments


def run_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What suits a run of this length, for the arguments that are not given.

    A hundred log lines, at least one every ten steps; evaluation at the start and ten times on the way, the end
    included; a checkpoint ten times, of which the last two are kept; a warm-up over a fiftieth of the run. A run whose
    length is counted in epochs has no number of steps yet, so it gets shares of itself.
    """
    steps = arguments.get("max_steps", -1)
    counted = steps > 0

    def part(of: int, most: int | None = None) -> float:
        if not counted:
            return 1 / of
        return max(1, min(math.ceil(steps / of), most or steps))

    defaults: dict[str, Any] = {"eval_strategy": "steps", "save_strategy": "steps"}
    if arguments.get("lr_scheduler_type") not in WITHOUT_WARMUP:
        defaults["warmup_steps"] = part(50)
    asked = {**defaults, "logging_strategy": "steps", **arguments}
    if asked["logging_strategy"] == "steps":
        defaults["logging_steps"] = part(100, most=10)
    if asked["eval_strategy"] != "no":
        defaults["eval_on_start"] = True
    if asked["eval_strategy"] == "steps":
        defaults["eval_steps"] = part(10)
    if asked["save_strategy"] == "steps":
        # Where the best checkpoint is kept, it must be one that was evaluated.
        defaults["save_steps"] = asked.get("eval_steps", part(10))
    if asked["save_strategy"] != "no":
        defaults["save_total_limit"] = 2
    return defaults


def batch_sizes(recipe: Recipe) -> tuple[int, int]:
    """Sequences of a micro-batch on one device, and micro-batches of an optimiser step."""
    batch, accumulation = (
        recipe.training.arguments.get(key, training_fields()[key].default)
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    return batch, accumulation
