"""Another name for the same architecture: for widths that a family's config refuses, and for text models with no head.

Some config classes tie `hidden_size` to the heads, though their model takes each head's width from `head_dim`: a Llama
of 9 heads can't be saved 384 wide and loaded again, a Phi-3 with LongRoPE at no other width than its teacher's. Often
another type of the installed transformers is the same model without that rule. It is looked for by test, not by name:
the same parameters (or the same once fused matrices are cut into the linears that the other type has in their place),
and the same logits of a small random model. Whatever the other type has beyond the first is switched off; what can't be
switched off must make no difference.

The text model of a multimodal type may have no causal language model of its own; it is looked for in the same way, with
a linear head put after it. Rotary positions of several axes, which are one and the same for text, thus become plain.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from .architecture import few_layers
from .pieces import Shapes, cut_tensors, pieces, shapes_of

# Head width, rotary tables, norms and flags stay the teacher's; these only make the test small.
_SMALL = {"vocab_size": 64, "intermediate_size": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_ROW = 48  # tokens of a row of the test


@dataclasses.dataclass(frozen=True)
class Equivalent:
    """A type that is another one in all but name.

    `off` are its fields beyond the other's at the values that switch them off; `layers` is the field, if any, that
    must hold the number of layers (the mixture-of-experts types say so from which layer on they begin to mix).
    `unread` are the other's entries of `rope_parameters` that this type does not know.
    """

    config_class: type[PretrainedConfig]
    off: Mapping[str, Any]
    layers: str | None = None
    unread: frozenset[str] = frozenset()

    @property
    def is_widely_read(self) -> bool:
        """Whether transformers knows how llama.cpp calls this type, so that more than transformers can read it."""
        return self.config_class.model_type in GGUF_CONFIG_MAPPING

    def config(self, fields: Mapping[str, Any], **changes: Any) -> PretrainedConfig:
        """The config of this type with the other's `fields`, which stay untouched.

        Raises:
            Exception: This type refuses the fields too, in a way of its own.
        """
        whole = {self.layers: fields["num_hidden_layers"]} if self.layers else {}
        named = {**fields, **self.off, **changes, **whole, "model_type": self.config_class.model_type}
        # Config classes write into the nested dicts (`rope_parameters`) that they are given.
        named = copy.deepcopy(named)
        for key in self.unread & (named.get("rope_parameters") or {}).keys():
            del named["rope_parameters"][key]
        return self.config_class.from_dict(named)


def equivalents(config_class: type[PretrainedConfig], fields: Mapping[str, Any]) -> tuple[Equivalent, ...]:
    """The types that are `config_class` in all but name: with its very parameters, or else with pieces of them.

    Args:
        fields: What `config_class` takes or refuses, as `to_dict` gives it.
    """
    if config_class.model_type not in CONFIG_MAPPING:
        return ()
    return _of_layout(config_class, fields)


def causal_equivalents(config_class: type[PretrainedConfig], fields: Mapping[str, Any]) -> tuple[Equivalent, ...]:
    """The causal types that are the model of `config_class`, which has no head, with a linear head after it.

    Args:
        fields: Those of the model, as `to_dict` gives them.
    """
    return _of_layout(config_class, {**fields, "tie_word_embeddings": False})  # the head of the test is its own


def with_head_width(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with the width of a head said, which a type that does not say it has from `hidden_size`."""
    width = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    return {**fields, "head_dim": width}


def _of_layout(config_class: type[PretrainedConfig], fields: Mapping[str, Any]) -> tuple[Equivalent, ...]:
    if not fields.get("num_attention_heads"):
        return ()
    small = {key: value for key, value in _SMALL.items() if key in fields}
    return _search(config_class.model_type, json.dumps({**few_layers(fields), **small}, sort_keys=True, default=str))


@functools.cache
def _search(model_type: str, fields_as_json: str) -> tuple[Equivalent, ...]:
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        references = _references(CONFIG_MAPPING[model_type], json.loads(fields_as_json))
        if not references:
            return ()
        fields, model = references[0]
        others = [other for other in MODEL_FOR_CAUSAL_LM_MAPPING if other is not CONFIG_MAPPING[model_type]]
        candidates = [
            Equivalent(other, _switched_off(other, fields), unread=_unread(CONFIG_MAPPING[model_type], other))
            for other in others
        ]
        found = [c for c in candidates if _agrees(c, references)]
        if not found:
            near = [c for c in candidates if _shares_half(c, fields, model)]
            found = [c for c in near for c in _variants(c, fields) if _agrees(c, references)]
        uncut = [c for c in found if _outline(c.config(fields)) == shapes_of(model)]
    return tuple(sorted(uncut or found, key=lambda c: (not c.is_widely_read, len(c.off))))


def _references(config_class: type[PretrainedConfig], fields: dict[str, Any]) -> list[tuple[dict[str, Any], nn.Module]]:
    """Small random models and their fields: 2 channels a head, or, where the family refuses that, its own head layout
    with as few heads as keep the ratio of queries to keys. The second has windows shorter than the test's rows."""
    heads = fields["num_attention_heads"]
    groups = math.gcd(heads, fields.get("num_key_value_heads") or heads)
    counts = [key for key in ("num_attention_heads", "num_key_value_heads") if fields.get(key)]
    few = {key: fields[key] // groups * min(groups, 2) for key in counts}
    width = (fields.get("head_dim") or fields["hidden_size"] // heads) * few["num_attention_heads"]
    for change in ({"hidden_size": 2 * heads}, {**few, "hidden_size": width}):
        small = {**fields, **change}
        model = _random_model(config_class, small)
        if model is None:
            continue
        short = dict(small)
        for key in [k for k, v in small.items() if type(v) is int and v > _ROW and k not in change]:
            changed = _random_model(config_class, {**short, key: _ROW // 3})
            if changed is not None and shapes_of(changed) == shapes_of(model):
                short[key] = _ROW // 3
        windowed = _random_model(config_class, short)
        assert windowed is not None
        said = with_head_width if isinstance(model, _Headed) else dict
        return [(said(small), model), (said(short), windowed)]
    return []


class _Headed(nn.Module):
    """A text model that has no causal language model of its own, with a linear head after it."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.model = AutoModel.from_config(config, dtype=dtype, experts_implementation="eager")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def forward(self, **inputs: Tensor) -> CausalLMOutput:
        """Logits of shape (rows, tokens, vocabulary)."""
        return CausalLMOutput(logits=self.lm_head(self.model(**inputs).last_hidden_state))


def _random_model(config_class: type[PretrainedConfig], fields: Mapping[str, Any]) -> nn.Module | None:
    try:
        config = config_class.from_dict(copy.deepcopy(dict(fields)))
        headed = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        make = AutoModelForCausalLM.from_config if headed else _Headed
        model: nn.Module = make(config, dtype=torch.float64).eval()
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        # Sections of rotary positions may fit the teacher's head width only, which shows when the model runs.
        if not headed:
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception:  # each family refuses in its own way
        return None
    return model


def _switched_off(other: type[PretrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `other` has beyond `fields`: null where it may be, false where it is a flag, else left as it comes."""
    types = {f.name: f.type for f in dataclasses.fields(other)}
    beyond = {key: types.get(key) for key in _defaults(other) if key not in fields}
    flags = {key: False for key, declared in beyond.items() if declared is bool}
    return flags | {
        key: None for key, declared in beyond.items() if declared is None or type(None) in get_args(declared)
    }


def _variants(candidate: Equivalent, fields: Mapping[str, Any]) -> Iterator[Equivalent]:
    """The candidate with a number that holds the number of layers, or with one of its flags switched on after all."""
    for key in _kept(candidate, fields):
        yield dataclasses.replace(candidate, layers=key)
    for key in [key for key, value in candidate.off.items() if value is False]:
        yield dataclasses.replace(candidate, off={**candidate.off, key: True})


def _unread(config_class: type[PretrainedConfig], other: type[PretrainedConfig]) -> frozenset[str]:
    """Entries of `rope_parameters` that `config_class` allows beyond the usual ones and `other` does not, and `type`,
    the older name of `rope_type`."""
    known = set(other.ignore_keys_at_rope_validation or ())
    return frozenset({*(config_class.ignore_keys_at_rope_validation or ()), "type"} - known)


def _kept(candidate: Equivalent, fields: Mapping[str, Any]) -> dict[str, float]:
    """Numbers that the candidate has beyond `fields` and that can't be switched off, as they come."""
    known = {**fields, **candidate.off}
    return {k: v for k, v in _defaults(candidate.config_class).items() if type(v) in (int, float) and k not in known}


def _defaults(config_class: type[PretrainedConfig]) -> Mapping[str, Any]:
    try:
        return config_class().to_dict()
    except Exception:  # some have no usable default config
        return {}


def _agrees(candidate: Equivalent, references: list[tuple[dict[str, Any], nn.Module]]) -> bool:
    try:
        for fields, model in references:
            if pieces(shapes_of(model), _outline(candidate.config(fields))) is None:
                return False
            # What can't be switched off is given other values, which must not show.
            kept = {k: type(v)(2) for k, v in _kept(candidate, fields).items() if k != candidate.layers}
            if not all(_same_logits(candidate.config(fields, **changes), model) for changes in ({}, kept)):
                return False
        return True
    except Exception:  # most types have nothing to do with these fields, and say so in their own ways
        return False


def _shares_half(candidate: Equivalent, fields: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether half the parameters are the model's already: layers that mix experts differ from it in these alone."""
    try:
        outline, shapes = _outline(candidate.config(fields)), shapes_of(model)
    except Exception:  # as above
        return False
    return 2 * sum(outline.get(name) == shape for name, shape in shapes.items()) >= len(shapes)


def _outline(config: PretrainedConfig) -> Shapes:
    with torch.device("meta"):  # of a copy: `from_config` writes the implementations into what it is given
        return shapes_of(AutoModelForCausalLM.from_config(copy.deepcopy(config)))


def _same_logits(config: PretrainedConfig, reference: nn.Module) -> bool:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, experts_implementation="eager").eval()
    tensors = dict(reference.named_parameters(remove_duplicate=False))
    model.load_state_dict(cut_tensors(tensors, shapes_of(model)), strict=False)
    ids = torch.arange(2 * _ROW).view(2, _ROW) % 64
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    near = torch.arange(_ROW).expand(2, -1)
    # Beyond the trained length some rotary tables change.
    far = near * (2 * int(getattr(config, "max_position_embeddings", 64)) // _ROW + 1)
    return all(_close(model, reference, input_ids=ids, attention_mask=mask, position_ids=p) for p in (near, far))


def _close(model: nn.Module, reference: nn.Module, **inputs: Tensor) -> bool:
    ours, theirs = (m(**inputs).logits.float() for m in (model, reference))
    # Cut matrices are multiplied one by one, so the last bits differ.
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
