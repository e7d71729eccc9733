"""What the installed `transformers` says about an architecture: configs, models on the meta device, parts of a model.

Nothing here or anywhere else knows a family: it reads declarations that every model carries.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..errors import InputError
from ..hooks import PassLeft, hooked, leave_pass
from .layers import model_blocks


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """The model of this config with shapes and no memory."""
    try:
        with torch.device("meta"):
            # Of a copy: `from_config` writes the implementations into what it is given.
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation="eager", experts_implementation="eager"
            )
    except Exception as error:  # and so does each family's model
        raise cannot_build(config.model_type, config.hidden_size, error) from error


def cannot_build(model_type: str, hidden_size: int, error: BaseException) -> InputError:
    """The error of a config or model that its family refuses to make at this width."""
    while error.__cause__ is not None:  # validators wrap what they have to say
        error = error.__cause__
    reason = " ".join(str(error).split()).rstrip(".")
    return InputError(f"`{model_type}` can't be built with hidden_size={hidden_size}: {type(error).__name__}: {reason}")


def width_field(config: PretrainedConfig) -> str:
    """The field that this config stores its residual width in (`n_embd` for some)."""
    return str(config.attribute_map.get("hidden_size", "hidden_size"))


def check_runs(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Run the student on the meta device: shapes can look right where an inner norm is sized by `hidden_size`.

    What data decides, as the routing of experts, can't run there; so a failure that the teacher shares means nothing.
    """
    failure = _trial(student)
    if failure and re.sub(r"\d+", "", failure) != re.sub(r"\d+", "", _trial(teacher)):
        raise InputError(
            f"`{student.config.model_type}` can't run at hidden_size={student.config.hidden_size} ({failure}); this "
            "family sizes something of an inner width by `hidden_size`; it is not supported"
        )


def _trial(model: PreTrainedModel) -> str:
    """Run `model` on meta up to the first block whose shapes all occurred before. The error's text, or ``""``."""
    blocks = [model.get_submodule(name) for name in model_blocks(model)]
    shapes = [tuple((name, p.shape) for name, p in block.named_parameters()) for block in blocks]
    known = next((i for i in range(len(blocks)) if set(shapes[i:]) <= set(shapes[:i])), len(blocks))
    try:
        with (
            torch.no_grad(),
            torch.device("meta"),
            suppress(PassLeft),
            hooked([(block, leave_pass) for block in blocks[known : known + 1]], "before"),
        ):
            ids = torch.zeros(1, 2, dtype=torch.long)
            model(input_ids=ids, position_ids=ids, attention_mask=torch.zeros(1, 1, 2, 2), use_cache=False)
    except Exception as error:
        # What does not fit raises a plain RuntimeError; anything else is a matter of the meta device.
        return " ".join(str(error).split()) if type(error) is RuntimeError else ""
    return ""


def few_layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields with few layers: two, or one of every kind that its lists with an entry a layer tell apart."""
    count = fields["num_hidden_layers"]
    lists = {key: v for key, v in fields.items() if isinstance(v, (list, tuple)) and len(v) == count}
    kinds = [repr([values[i] for values in lists.values()]) for i in range(count)]
    chosen = sorted({kinds.index(kind) for kind in kinds} | set(range(min(2, count))))
    few = {key: [values[i] for i in chosen] for key, values in lists.items()}
    return {**fields, **few, "num_hidden_layers": len(chosen)}
