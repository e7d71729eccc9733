"""The decoder language model inside a teacher, and the attention that its class has."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
)

from ..errors import InputError
from .architecture import cannot_build, width_field
from .equivalent import causal_equivalents, with_head_width


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the decoder language model that `config` describes: itself, or its nested text model's.

    Where the text model's own type has no causal language model, it is of the type that is the same model and has one
    (`qwen2` for `qwen2_vl`), which is found by test (see `equivalent.py`).

    Raises:
        InputError: There is no such model.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise InputError(f"teacher of type `{kind}` is an encoder-decoder; expected a decoder-only language model")
    text = config.get_text_config(decoder=True)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        text = _causal(config, text)
    if type(text) in MODEL_FOR_MASKED_LM_MAPPING and text.to_dict().get("is_decoder") is False:
        raise InputError(f"teacher of type `{kind}` is an encoder; expected a decoder-only language model")
    if width_field(text) not in text.to_dict():
        raise InputError(
            f"teacher of type `{kind}` has no `hidden_size` in its config, so its residual width is unknown"
        )
    return text


def _causal(config: PretrainedConfig, text: PretrainedConfig) -> PretrainedConfig:
    """`text` in the fields of a causal type that is its model with a linear head.

    Raises:
        InputError: No type is.
    """
    named = f"teacher of type `{config.model_type}`"
    if type(text) in MODEL_MAPPING:
        fields = {key: value for key, value in text.to_dict().items() if key not in ("architectures", "_name_or_path")}
        for other in causal_equivalents(type(text), fields):
            # Whether the head is tied is the whole model's matter: the text model has none.
            return other.config(with_head_width(fields), tie_word_embeddings=bool(config.tie_word_embeddings))
    raise InputError(
        f"{named} has no causal language model in the installed transformers, and no causal type computes what its "
        f"text model (`{text.model_type}`) does; use a language model of its kind, or save its text model as one"
    )


def attention_of(config: PretrainedConfig, implementation: str) -> str:
    """The attention implementation that `implementation` means for the decoder of this config: `auto` is its class's.

    Raises:
        InputError: The class has no such implementation, or what it needs is not installed.
    """
    text = decoder_config(config)
    # A config remembers the implementation that its model was loaded with; what is written of it does not.
    fresh = type(text).from_dict(text.to_dict())
    try:
        with torch.device("meta"):
            chosen = {} if implementation == "auto" else {"attn_implementation": implementation}
            model = AutoModelForCausalLM.from_config(fresh, **chosen)
    except Exception as error:  # each in its own way
        if implementation == "auto":
            raise cannot_build(text.model_type, text.hidden_size, error) from error
        reason = " ".join(str(error).split()).partition(". ")[0].partition("! ")[0]
        raise InputError(
            f"teacher.attn_implementation: `{text.model_type}` can't be built with {implementation}: {reason[:200]}; "
            "leave it `auto`, which is sdpa where the class has it, else eager"
        ) from error
    return str(model.config._attn_implementation)
