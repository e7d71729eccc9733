"""Loading a teacher: a Hub id, a local folder, or a GGUF file that transformers dequantises. Never runs its code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..factors.teacher import holding
from ..plan.decoder import attention_of, decoder_config
from ..recipe.schema import TeacherConfig
from .generation import check_generation, make_saveable
from .teacher_place import is_gguf, local_teacher
from .weights import check_leftovers, check_stored

_LOADERS = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
)


def load_config(teacher: TeacherConfig) -> PretrainedConfig:
    """The teacher's own config, with no weights read; of a local folder, how its weights are stored is looked at.

    Raises:
        InputError: Nothing loadable is there, the model is quantised, it is no decoder language model, it has not the
            attention that is asked for, or its files are damaged.
    """
    config = _load(AutoConfig.from_pretrained, teacher)
    decoder_config(config)
    _loader(config)
    attention_of(config, teacher.attn_implementation)
    quantised = not is_gguf(teacher.model) and config.to_dict().get("quantization_config")
    if quantised:
        _dequantising(teacher, quantised)
    path = local_teacher(teacher.model)
    if path is not None and path.is_dir():
        check_stored(path, as_floats=not quantised)
        check_generation(path)
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
    config = load_config(teacher)
    options: dict[str, Any] = {"dtype": dtype}
    quantised = config.to_dict().get("quantization_config")
    if is_gguf(teacher.model):
        options["dtype"] = torch.float32  # its tensors are dequantised to float32 in any case
    elif quantised:
        options["quantization_config"] = _dequantising(teacher, quantised)
    if teacher.attn_implementation != "auto":
        options["attn_implementation"] = teacher.attn_implementation
    model, info = _load(_loader(config).from_pretrained, teacher, output_loading_info=True, **options)
    check_leftovers(teacher.model, model, info)
    model = _text_model(model)
    assert isinstance(model, PreTrainedModel)
    if model.generation_config is not None:
        make_saveable(model.generation_config)
    if is_gguf(teacher.model) or quantised:
        # The weights are plain floats by now, and what is saved of them should say so.
        model.config.quantization_config = None
        del model.config.quantization_config
        vars(model)["hf_quantizer"] = None
        model = nn.Module.to(model, dtype)
        model.config.dtype = dtype
    return model if device is None else nn.Module.to(model, device)


def _loader(config: PretrainedConfig) -> Any:
    for mapping, loader in _LOADERS:
        if type(config) in mapping:
            return loader
    raise InputError(
        f"teacher.model: type `{config.model_type}` has no model with a text head in the installed transformers; "
        "save its text model by itself and use that"
    )


def _dequantising(teacher: TeacherConfig, stored: Mapping[str, Any] | Any) -> Any:
    """The config with which transformers dequantises this teacher's weights while it loads them."""
    stored = stored if isinstance(stored, Mapping) else stored.to_dict()
    method = stored.get("quant_method")
    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING.get(str(method))
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        raise InputError(
            f"teacher.model: `{teacher.model}` is stored quantised ({method}), which transformers can't dequantise "
            "while loading; a clone's weights are made of the teacher's as float32, bfloat16 or float16 numbers; use "
            "the unquantised model or a GGUF file"
        )
    if not teacher.dequantize:
        raise InputError(
            f"teacher.model: `{teacher.model}` is stored quantised ({method}); set teacher.dequantize: true to load "
            "its weights as the numbers that they stand for, or use the unquantised model or a GGUF file"
        )
    fields = {key: value for key, value in stored.items() if key != "quant_method"}
    return kind.from_dict({**fields, "dequantize": True})


def _text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text model inside a multimodal one, sharing its weights; any other model itself."""
    config = decoder_config(model.config)
    if config is model.config:
        return model
    if type(config) is not type(model.config.get_text_config(decoder=True)):
        return _of_another_type(model, config)
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=config._attn_implementation, dtype=model.dtype
        )
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


def _of_another_type(whole: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The text model of `whole` as the causal type that is the same model, compared with it on a few tokens.

    Raises:
        InputError: The logits differ, so the whole model does more than its text model and a linear head.
    """
    head = whole.get_output_embeddings()
    parameters = whole.get_decoder().named_parameters(remove_duplicate=False)
    tensors = {f"model.{name}": parameter.data for name, parameter in parameters}
    tensors |= {f"lm_head.{name}": parameter.data for name, parameter in head.named_parameters()}
    text = holding(tensors, config, whole)
    # Token ids that stand for images and the like are none of text.
    special = {value for key, value in whole.config.to_dict().items() if key.endswith("_id")}
    ids = torch.tensor([[i for i in range(3, 64) if i not in special][:16]], device=whole.device)
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=ids).logits.float() for model in (text, whole))
    far = float((ours - theirs).abs().max() / theirs.std())
    if not far < 32 * torch.finfo(whole.dtype).eps ** 0.5:
        raise InputError(
            f"teacher of type `{whole.config.model_type}` does more with text than its text model, taken as "
            f"`{config.model_type}`: their logits differ by {far:.2g} of their deviation; save the text model by itself"
        )
    return text


def _load(loader: Any, teacher: TeacherConfig, **options: Any) -> Any:
    name, path = teacher.model, local_teacher(teacher.model)
    if path is None:
        options["revision"] = teacher.revision
    elif is_gguf(name):
        name, options["gguf_file"] = str(path.parent), path.name
    else:
        name = str(path)
    try:
        # Said outright: unsaid, transformers asks on the terminal whether to run the code that a teacher comes with.
        return loader(name, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # the loaders raise many types; each is one line for the user here
        reason = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):
            raise InputError(
                f"teacher.model: `{teacher.model}` comes with modelling code of its own, which is never run here; use "
                "a model of a type that the installed transformers has, or a newer transformers"
            ) from error
        where = "is no folder here, and from the Hub it can't be loaded" if path is None else "can't be loaded"
        raise InputError(f"teacher.model: `{teacher.model}` {where}: {type(error).__name__}: {reason}") from error
