"""Another name for the same architecture, for widths that a family's config refuses.

Some config classes insist that `hidden_size` is a multiple of the number of heads, though their model takes each head's
width from `head_dim`: a Llama of 9 heads can't be saved 384 wide and loaded again. Often another type of the installed
transformers is the same model without that rule. It is looked for by test, not by name: the same parameters, and the
same logits of a small random model to the last bit, with whatever the other type has beyond the first switched off.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

# Heads, `head_dim`, rotary tables, norms and flags stay the teacher's; these only make the test small.
_SMALL = {"num_hidden_layers": 2, "vocab_size": 64, "intermediate_size": 8, "layer_types": None}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def equivalent_config(config_class: type[PretrainedConfig], fields: Mapping[str, Any]) -> PretrainedConfig | None:
    """The config of a type that is `config_class` in all but name and takes these fields, or None.

    Args:
        fields: What `config_class` refuses, as `to_dict` gives it.
    """
    heads = fields.get("num_attention_heads")
    if not heads:
        return None
    small = {**fields, **{key: value for key, value in _SMALL.items() if key in fields}, **dict.fromkeys(_IDS)}
    small["hidden_size"] = 2 * heads
    for other in _same(config_class.model_type, json.dumps(small, sort_keys=True, default=str)):
        try:
            return other.from_dict(_as(other, fields))
        except Exception:  # this one refuses the width too
            continue
    return None


def _as(other: type[PretrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: None for key in other().to_dict() if key not in fields}
    return {**fields, **extra, "model_type": other.model_type}


@functools.cache
def _same(model_type: str, small: str) -> tuple[type[PretrainedConfig], ...]:
    config_class, fields = CONFIG_MAPPING[model_type], json.loads(small)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            reference = AutoModelForCausalLM.from_config(config_class.from_dict(dict(fields)), dtype=torch.float32)
        except Exception:  # the family can't be made this small
            return ()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.normal_(std=0.5)
        return tuple(
            other
            for other in MODEL_FOR_CAUSAL_LM_MAPPING
            if other is not config_class and _agrees(other, fields, reference.eval())
        )


@torch.no_grad()
def _agrees(other: type[PretrainedConfig], fields: Mapping[str, Any], reference: PreTrainedModel) -> bool:
    shapes = {name: p.shape for name, p in reference.named_parameters(remove_duplicate=False)}
    try:
        config = other.from_dict(_as(other, fields))
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(config)
        if {name: p.shape for name, p in outline.named_parameters(remove_duplicate=False)} != shapes:
            return False
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        model.load_state_dict(reference.state_dict())
        ids = torch.arange(96).view(2, 48) % 64
        mask = torch.ones_like(ids)
        mask[1, :7] = 0
        ours, theirs = (m(input_ids=ids, attention_mask=mask).logits for m in (model, reference))
        return torch.equal(ours, theirs)
    except Exception:  # most types have nothing to do with these fields, and say so in their own ways
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
