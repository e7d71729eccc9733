"""From the recipe's `training` section to `CloneArguments`: names, types and ranges, and the length in steps."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from ..errors import InputError
from ..ranges import Range
from .fields import training_fields
from .messages import unknown_key, wrong_value
from .schema import Recipe

_COUNT = Range(1, 1_000_000, whole=True)
_SHARE = Range(0, 1)
_SEED = Range(0, 2**32 - 1, whole=True)
# Every number that `TrainingArguments` and `CloneArguments` take (a test holds the list complete). They are far beyond
# what anybody trains with; outside them is a slip, or transformers would take the number for "not given".
RANGES: dict[str, Range] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": Range(0, 1e6, above=True),
    "max_steps": Range(1, 1e9, whole=True, also=(-1,)),
    "learning_rate": Range(0, 10),
    # A warm-up over a third of the run or more is hardly meant: .5 is half of the run, not half a step.
    "warmup_steps": Range(0, 1e9, whole=True, share=0.3),
    "weight_decay": Range(0, 10),
    "adam_beta1": Range(0, 0.99999),
    "adam_beta2": Range(0, 0.9999999),
    "adam_epsilon": Range(0, 1, above=True),
    "muon_momentum": Range(0, 0.99999),
    "save_minutes": Range(0, 1e6),
    "max_grad_norm": Range(0, 1e6),
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": Range(0, 1000),
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": Range(1, 1e9, whole=True, share=1),
    "eval_steps": Range(1, 1e9, whole=True, share=1),
    "save_steps": Range(1, 1e9, whole=True, share=1),
    "eval_delay": Range(0, 1e9),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0, 256, whole=True),
    "dataloader_prefetch_factor": Range(1, 10_000, whole=True),
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": Range(1, 1e7, whole=True),
    "local_rank": Range(0, 65_535, whole=True, also=(-1,)),
}


def check_training_argument(key: str, value: Any) -> None:
    """Check one field of `CloneArguments` without importing it.

    Raises:
        InputError: There is no such field, or its value has the wrong type or is out of range.
    """
    if key not in training_fields():
        raise unknown_key(f"training.{key}", reason="it is no field of transformers.TrainingArguments either")
    try:
        # Of pydantic's strict modes only the one for JSON takes a list for a tuple and an integer for a number.
        _adapter(key).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(wrong_value(("training", key), value, error.errors())) from None


@functools.cache
def _adapter(key: str) -> TypeAdapter[Any]:
    hint = training_fields()[key].hint
    if key in RANGES:
        limit = RANGES[key]
        hint = Annotated[hint, AfterValidator(lambda value: value if value is None else limit(value))]
    return TypeAdapter(hint)


def training_arguments(recipe: Recipe, world_size: int = 1) -> dict[str, Any]:
    """Keyword arguments for `CloneArguments`: the recipe's own, `total_tokens` turned into `max_steps` for `world_size`
    processes, and where the recipe is silent what suits a run of this length (`run_defaults`).

    From a calibrated start matrices are trained with Muon unless the recipe names an optimiser, since AdamW's first
    steps undo such a start at its usual rates (see `optim.MuonAdamW`).
    """
    arguments, method = dict(recipe.training.arguments), recipe.method
    if method.init == "calibrated" and method.start_from is None and method.baseline is None:
        arguments.setdefault("muon", "optim" not in arguments)
    if recipe.training.total_tokens is not None:
        sequences = math.prod(batch_sizes(recipe)) * world_size
        arguments["max_steps"] = math.ceil(recipe.training.total_tokens / (sequences * recipe.data.sequence_length))
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

    defaults: dict[str, Any] = {"warmup_steps": part(50), "eval_strategy": "steps", "save_strategy": "steps"}
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
