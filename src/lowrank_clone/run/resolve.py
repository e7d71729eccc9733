"""A recipe with everything decided that a machine, a default or the number of processes decides."""

from __future__ import annotations

import dataclasses
import os
from enum import Enum
from typing import Any

import torch
from transformers import PretrainedConfig

from ..data.config import SourceConfig
from ..data.files import find_files
from ..plan.decoder import attention_of
from ..recipe.schema import Dtype, Recipe
from ..training.arguments import CloneArguments
from .teacher_place import local_teacher

# Beside what the recipe gives, these are written out: their defaults could be others in a later release.
WRITTEN = (
    "output_dir",
    "seed",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "muon",
    "muon_momentum",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "logging_strategy",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "eval_on_start",
    "save_strategy",
    "save_steps",
    "save_minutes",
)
# Of these, what a resumed run takes from its own recipe or from the defaults, not from the run that it resumes.
OF_A_START = ("output_dir", "max_steps", "num_train_epochs", "logging_steps", "eval_steps", "eval_on_start")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a recipe names. `auto` is bfloat16 on an accelerator and on a CPU that multiplies it natively
    (AVX512-BF16), and float32 on any other CPU."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    return torch.bfloat16 if native else torch.float32


def resolved(recipe: Recipe, arguments: CloneArguments, config: PretrainedConfig) -> Recipe:
    """The recipe as it is run: dtypes and attention by name, `total_tokens` as `max_steps`, local paths from the root,
    and the training arguments in `WRITTEN`.

    Args:
        config: The teacher's, of its text model.
    """
    device = arguments.device
    attention: Any = attention_of(config, recipe.teacher.attn_implementation)  # one of those that the schema takes
    written = {name: _plain(getattr(arguments, name)) for name in WRITTEN}
    if written["max_steps"] > 0:
        del written["num_train_epochs"]  # Trainer does not read it then
    model, held_out = recipe.teacher.model, recipe.data.validation
    written["output_dir"] = _from_the_root(written["output_dir"])
    given = {key: value for key, value in recipe.training.arguments.items() if key not in WRITTEN}
    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(
            recipe.teacher,
            model=model if local_teacher(model) is None else _from_the_root(model),
            dtype=_name(recipe.teacher.dtype, device),
            attn_implementation=attention,
        ),
        method=dataclasses.replace(
            recipe.method, start_from=recipe.method.start_from and _from_the_root(recipe.method.start_from)
        ),
        data=dataclasses.replace(
            recipe.data,
            sources=[_source(source) for source in recipe.data.sources],
            validation=held_out if isinstance(held_out, float) else [_source(source) for source in held_out],
        ),
        student=dataclasses.replace(recipe.student, dtype=_name(recipe.student.dtype, device)),
        training=dataclasses.replace(recipe.training, total_tokens=None, arguments=written | given),
    )


def _source(source: SourceConfig) -> SourceConfig:
    local = find_files(source.path) is not None
    return dataclasses.replace(source, path=_from_the_root(source.path)) if local else source


def _from_the_root(path: str) -> str:
    """A relative path as it is from everywhere; `~` stays, as other machines have one too."""
    return path if path.startswith("~") else os.path.abspath(path)


def _name(dtype: Dtype, device: torch.device) -> Dtype:
    return "bfloat16" if resolve_dtype(dtype, device) is torch.bfloat16 else "float32"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
