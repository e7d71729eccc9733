"""What may differ between a recipe and the run that it resumes, in one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

from ..errors import InputError
from ..recipe.schema import OPEN_FIELDS, Recipe

# free: nothing is said. said: it is, and recorded in results.json. asked: refused unless --allow names the section.
Rule = Literal["free", "said", "asked", "refused"]
_STARTED = "has no effect on a run that has started"
_BATCH = "steps that were done count as steps of the new size"
_RATES = "the learning rates of the steps to come are those of the new schedule"
_OPTIMIZER = "the checkpoint's optimiser has the old value"
_OBJECTIVE = "the objective is another one from here on"
_ORDER = "the text would be read in another order"

# For each field of a recipe: whether a resumed run may have another value, and what that means. A field of `training`
# that is not listed is said.
RULES: dict[str, tuple[Rule, str]] = {
    "teacher.model": ("free", ""),  # the weights themselves are compared
    "teacher.revision": ("free", ""),
    "teacher.dequantize": ("free", ""),
    "teacher.dtype": ("said", "the teacher's weights are rounded otherwise from here on"),
    "teacher.attn_implementation": ("said", "attention may be rounded otherwise from here on"),
    "student.hidden_size": ("refused", "its factors have the old width"),
    "student.dtype": ("said", "the student's weights are rounded otherwise from here on"),
    "student.overrides": ("refused", "it would be another model"),
    "method.temperature": ("asked", _OBJECTIVE),
    "method.lm_weight": ("asked", _OBJECTIVE),
    "method.kl_weight": ("asked", _OBJECTIVE),
    "method.clone_weight": ("asked", _OBJECTIVE),
    "method.clone_normalization": ("refused", "the checkpoint's running means belong to the old one"),
    "method.attn_out_tap": ("asked", _OBJECTIVE),
    "method.target_gradient": ("asked", _OBJECTIVE),
    "method.mask_scope": ("asked", _OBJECTIVE),
    "method.taps": ("asked", _OBJECTIVE),
    "method.init": ("said", _STARTED),
    "method.calibration": ("said", _STARTED),
    "method.factor_std": ("said", _STARTED),
    "method.start_from": ("said", _STARTED),
    "method.parameterization": ("asked", "groups are switched at the next step if theirs differs"),
    "method.head_factor": ("refused", "the checkpoint has other factors"),
    "method.baseline": ("refused", "it would be another experiment"),
    "method.execution": ("free", ""),
    "method.compile": ("free", ""),
    "data.sources": ("free", ""),  # the blocks that come of them are compared
    "data.validation": ("free", ""),
    "data.max_validation_blocks": ("said", "validation losses before and after are of different text"),
    "data.sequence_length": ("asked", "the text would be cut otherwise"),
    "data.seed": ("asked", _ORDER),
    "data.on_error": ("free", ""),
    "data.num_proc": ("free", ""),
    "data.packing": ("asked", "the text would be cut otherwise"),
    "data.document_mask": ("asked", "the same text would be another batch"),
    "data.deduplicate": ("free", ""),  # the blocks that come of it are compared
    "data.repeat": ("free", ""),
    "data.shards": ("free", ""),
    "training.total_tokens": ("free", ""),  # it is max_steps by now
    "training.max_steps": ("said", _RATES),
    "training.teacher_sharding": ("free", ""),
    "training.average_tokens_across_devices": ("free", ""),
    "training.num_train_epochs": ("said", _RATES),
    "training.lr_scheduler_type": ("said", _RATES),
    "training.lr_scheduler_kwargs": ("said", _RATES),
    "training.warmup_steps": ("said", _RATES),
    "training.learning_rate": ("said", _RATES),
    "training.per_device_train_batch_size": ("asked", _BATCH),
    "training.gradient_accumulation_steps": ("asked", _BATCH),
    "training.seed": ("asked", _ORDER),
    "training.data_seed": ("asked", _ORDER),
    **dict.fromkeys(
        (
            *("training.optim", "training.optim_args", "training.muon", "training.muon_momentum"),
            *("training.weight_decay", "training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"),
        ),
        ("refused", _OPTIMIZER),
    ),
    # What is written, said and saved, and how the same numbers are computed.
    **dict.fromkeys(
        (
            *("training.output_dir", "training.run_name", "training.report_to", "training.project"),
            *("training.disable_tqdm", "training.log_level", "training.log_taps", "training.do_eval"),
            *("training.logging_strategy", "training.logging_steps", "training.logging_first_step"),
            *("training.eval_strategy", "training.eval_steps", "training.eval_on_start", "training.eval_delay"),
            *("training.save_strategy", "training.save_steps", "training.save_minutes", "training.save_total_limit"),
            *("training.per_device_eval_batch_size", "training.eval_accumulation_steps", "training.use_cpu"),
            *("training.dataloader_num_workers", "training.dataloader_pin_memory", "training.ddp_timeout"),
            *("training.dataloader_prefetch_factor", "training.dataloader_persistent_workers"),
            *("training.push_to_hub", "training.hub_token", "training.hub_model_id", "training.hub_strategy"),
            *("training.activation_checkpointing", "training.activation_checkpointing_kwargs"),
            *("training.gradient_checkpointing", "training.gradient_checkpointing_kwargs"),
            *("training.hub_private_repo", "training.torch_empty_cache_steps"),
            *("training.max_hours", "training.rehearse"),
        ),
        ("free", ""),
    ),
}


# Of what is refused, what `--allow data` accepts: it decides which rows are read, and in which order.
OF_THE_DATA = (
    *("data.sequence_length", "data.seed", "data.packing", "data.document_mask"),
    *("training.seed", "training.data_seed"),
)

# Their product is the sequences of a step in each process.
_SIZES = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")


def compare_recipes(old: Recipe, new: Recipe, checkpoint: object, allowed: Collection[str] = ()) -> list[str]:
    """What to say of a resumed run whose recipe is not the one that it was begun with; both recipes are resolved.

    Args:
        allowed: Sections in which it may differ where a resumed run usually may not.

    Raises:
        InputError: A field differs that a resumed run can't change.
    """
    before, now = _fields(old), _fields(new)
    same_step = math.prod(before.get(key) or 1 for key in _SIZES) == math.prod(now.get(key) or 1 for key in _SIZES)
    said = []
    for key in sorted(before.keys() | now.keys(), key=list(RULES | before | now).index):
        if before.get(key) == now.get(key):
            continue
        rule, meaning = rule_of(key)
        change = f"{key}: got {_show(now.get(key))}, the run to resume has {_show(before.get(key))}"
        section = "data" if key in OF_THE_DATA else key.split(".")[0]
        if key in _SIZES and same_step:
            rule, meaning = "said", "a step has as many sequences, summed in another order"
        if rule == "refused" or (rule == "asked" and section not in allowed):
            allow = f", give --allow {section}" if rule == "asked" else ""
            raise InputError(
                f"{change}; {meaning}; set it back{allow}, or begin another run with method.start_from={checkpoint}"
            )
        if rule != "free":
            said.append(f"{change}: {meaning}")
    return said


def rule_of(key: str) -> tuple[Rule, str]:
    """The rule of a field by its dotted key, and what another value means."""
    other: Rule = "said"
    if key.startswith("student."):
        return RULES.get(key, RULES["student.overrides"])
    return RULES.get(key, (other, "the steps to come are others than those of the run as it was begun"))


def _fields(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe by dotted key; of its two open sections key by key."""
    found: dict[str, Any] = {}
    for section in dataclasses.fields(recipe):
        content = getattr(recipe, section.name)
        for field in dataclasses.fields(content):
            value = getattr(content, field.name)
            if OPEN_FIELDS.get(section.name) == field.name:
                found |= {f"{section.name}.{key}": inner for key, inner in value.items()}
            else:
                found[f"{section.name}.{field.name}"] = value
    return found


def _show(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
