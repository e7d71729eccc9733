"""From the recipe's `training` section to `CloneArguments`."""

import functools
import json
import math
import types
import typing
from enum import Enum
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import InputError
from ..training.arguments import TRAINING_FIELDS, CloneArguments
from .messages import unknown_key, wrong_value
from .schema import Recipe


def training_arguments(recipe: Recipe, world_size: int = 1) -> dict[str, Any]:
    """Keyword arguments for `CloneArguments`, `total_tokens` turned into `max_steps` for `world_size` processes.

    From a calibrated start matrices are trained with Muon unless the recipe names an optimiser, since AdamW's first
    steps undo such a start at its usual rates (see `optim.MuonAdamW`).
    """
    arguments, method = dict(recipe.training.arguments), recipe.method
    if method.init == "calibrated" and method.start_from is None and method.baseline is None:
        arguments.setdefault("muon", "optim" not in arguments)
    if recipe.training.total_tokens is not None:
        sequences = math.prod(batch_sizes(recipe)) * world_size
        arguments["max_steps"] = math.ceil(recipe.training.total_tokens / (sequences * recipe.data.sequence_length))
    return arguments


def batch_sizes(recipe: Recipe) -> tuple[int, int]:
    """Sequences of a micro-batch on one device, and micro-batches of an optimiser step."""
    batch, accumulation = (
        recipe.training.arguments.get(key, TRAINING_FIELDS[key].default)
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    return batch, accumulation


_TRAINING_LIMITS = {
    "learning_rate": Field(ge=0),
    "per_device_train_batch_size": Field(gt=0),
    "per_device_eval_batch_size": Field(gt=0),
    "gradient_accumulation_steps": Field(gt=0),
    "muon_momentum": Field(ge=0, lt=1),
}


def check_training_argument(key: str, value: Any) -> None:
    """Refuse a field that `TrainingArguments` has not, or a value that the field does not take.

    Raises:
        InputError: In one line, with the nearest known field.
    """
    if key not in TRAINING_FIELDS:
        raise unknown_key(f"training.{key}", reason="it is no field of transformers.TrainingArguments either")
    try:
        _training_adapter(key).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(wrong_value(("training", key), value, error.errors())) from None


@functools.cache
def _training_adapter(key: str) -> TypeAdapter[Any]:
    hint = _without_free_text(typing.get_type_hints(CloneArguments)[key])
    return TypeAdapter(Annotated[hint, _TRAINING_LIMITS[key]] if key in _TRAINING_LIMITS else hint)


def _without_free_text(hint: Any) -> Any:
    """An enum's values are the only text that `TrainingArguments` takes, though it annotates `SomeEnum | str`."""
    options = typing.get_args(hint)
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    if is_union and any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        return Union[tuple(option for option in options if option is not str)]  # noqa: UP007 - built at run time
    return hint
