"""Loading a teacher: a Hub id, a local folder, or a GGUF file that transformers dequantises."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..plan.architecture import decoder_config
from ..recipe.schema import TeacherConfig
from .located import is_gguf, local_teacher


def load_config(teacher: TeacherConfig) -> PretrainedConfig:
    """The teacher's own config, with no weights read.

    Raises:
        InputError: Nothing loadable is there, the model is quantised, or it is no decoder language model.
    """
    config = _load(AutoConfig.from_pretrained, teacher)
    decoder_config(config)
    if not is_gguf(teacher.model) and config.to_dict().get("quantization_config"):
        raise InputError(
            f"teacher.model: `{teacher.model}` is stored quantised; expected float32, bfloat16 or float16 weights, "
            "which are the basis of the student's; use the unquantised model or a GGUF file"
        )
    return config


def load_tokenizer(teacher: TeacherConfig) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer.

    Raises:
        InputError: There is none.
    """
    return _load(AutoTokenizer.from_pretrained, teacher)


def load_teacher(teacher: TeacherConfig, dtype: torch.dtype, device: torch.device | None = None) -> PreTrainedModel:
    """The decoder language model with its weights; of a multimodal model its text model.

    Raises:
        InputError: The weights are missing, incomplete or in the wrong form.
    """
    model, info = _load(
        AutoModelForCausalLM.from_pretrained,
        teacher,
        dtype=torch.float32 if is_gguf(teacher.model) else dtype,  # GGUF tensors are dequantised to float32 in any case
        attn_implementation=teacher.attn_implementation,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise InputError(
            f"teacher.model: `{teacher.model}` lacks {len(info['missing_keys'])} tensors of its architecture, the "
            f"first `{sorted(info['missing_keys'])[0]}`; expected a complete checkpoint"
        )
    model = _text_model(model)
    assert isinstance(model, PreTrainedModel)
    if is_gguf(teacher.model):
        # The weights are plain floats by now, and what is saved of them should say so.
        model.config.quantization_config = None
        del model.config.quantization_config
        vars(model)["hf_quantizer"] = None
        model = nn.Module.to(model, dtype)
        model.config.dtype = dtype
    return model if device is None else nn.Module.to(model, device)


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text model inside a multimodal one, sharing its weights; any other model itself."""
    config = decoder_config(model.config)
    if config is model.config:
        return model
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, attn_implementation=model.config._attn_implementation)
    decoder = model.get_decoder()
    if type(decoder) is not type(text.base_model) or model.get_output_embeddings() is None:
        raise InputError(
            f"teacher of type `{model.config.model_type}` holds its text model as {type(decoder).__name__}, expected "
            f"{type(text.base_model).__name__}; save the text model by itself and use that"
        )
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(model.get_output_embeddings())
    text.tie_weights()
    left = [name for name, parameter in text.named_parameters() if parameter.is_meta]
    if left:
        raise InputError(f"teacher of type `{model.config.model_type}`: its text model has no `{left[0]}`")
    text.generation_config = model.generation_config
    return text.eval()


def _load(loader: Any, teacher: TeacherConfig, **options: Any) -> Any:
    name, path = teacher.model, local_teacher(teacher.model)
    if path is None:
        options["revision"] = teacher.revision
    elif is_gguf(name):
        name, options["gguf_file"] = str(path.parent), path.name
    else:
        name = str(path)
    try:
        return loader(name, **options)
    except InputError:
        raise
    except Exception as error:  # the loaders raise many types; each is one line for the user here
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"teacher.model: `{teacher.model}` can't be loaded: {type(error).__name__}: {reason}"
        ) from error
