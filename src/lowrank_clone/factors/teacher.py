"""The teacher as the type that a plan is of: an equivalent one, where the teacher's refuses the student's width."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..errors import InputError
from ..plan.architecture import on_meta
from ..plan.decoder import decoder_config
from ..plan.pieces import cut_tensors, shapes_of
from .student import align_experts


def check_teacher(teacher: Any) -> None:
    """Refuse what can't serve as a basis.

    Raises:
        InputError: It is no language model of transformers, or one that was changed beside its config: wrapped,
            compiled, with adapters, without some layers; or a weight is quantised, absent or not finite.
    """
    if not isinstance(teacher, PreTrainedModel):
        wrapped = "; give the model itself, which is inside" if isinstance(teacher, nn.Module) else ""
        raise InputError(
            f"teacher: got a {type(teacher).__name__}, expected a model as AutoModelForCausalLM.from_pretrained "
            f"returns it{wrapped}"
        )
    if any(module._compiled_call_impl is not None for module in teacher.modules()):
        raise InputError(
            "teacher: it is compiled, which hides its activations; give it as it was loaded, and compile both models "
            "with clone.compile_layers()"
        )
    for name, parameter in teacher.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise InputError(
                f"teacher parameter `{name}` is stored as {parameter.dtype}; expected float32, bfloat16 or float16, "
                "since its weights are the basis of the student's; load the teacher without quantisation"
            )
        if parameter.is_meta:
            raise InputError(
                f"teacher parameter `{name}` is on the meta device, so it has no numbers; load the weights, all of "
                "them onto one device"
            )
    _check_structure(teacher)
    _check_finite(teacher)


def _check_structure(teacher: PreTrainedModel) -> None:
    """Refuse a model whose parameters are not those that its config describes."""
    own, described = teacher, on_meta(decoder_config(teacher.config))
    found, expected = shapes_of(own), shapes_of(described)
    shared = dict(own.named_parameters()).keys() - dict(described.named_parameters()).keys()
    hint = (
        "merge adapters into the weights (`merge_and_unload()` of peft), take the causal language model alone, and "
        "leave its layers as they were loaded"
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            shape, wanted = (list(s[name]) if name in s else "nothing" for s in (found, expected))
            raise InputError(f"teacher: got {shape} for `{name}`, where its config describes {wanted}; {hint}")
    if shared:
        raise InputError(
            f"teacher: `{min(shared)}` is a tensor of its own, where its config ties it to another; set "
            "tie_word_embeddings false in its config, or call tie_weights()"
        )


@torch.no_grad()
def _check_finite(teacher: PreTrainedModel) -> None:
    """Refuse weights that are no numbers; every device is waited for once."""
    parameters = {name: p for name, p in teacher.named_parameters() if p.numel()}
    finite = [torch.stack(p.aminmax()).isfinite().all() for p in parameters.values()]
    for name, good in zip(parameters, finite, strict=True):
        if not good:
            raise InputError(f"teacher parameter `{name}` holds numbers that are not finite; load an undamaged model")


def as_type(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """`teacher` itself if it is of `config`'s type, else the model of `config` that holds its weights.

    Args:
        config: A plan's `teacher_config`: of the teacher's own type, or of one that is the same model, whose linears
            are the teacher's or pieces of them. The weights are views of the teacher's memory.
    """
    if type(teacher.config) is type(config):
        align_experts(teacher)
        return teacher
    return holding(dict(teacher.named_parameters(remove_duplicate=False)), config, teacher)


def holding(tensors: Mapping[str, Tensor], config: PretrainedConfig, teacher: PreTrainedModel) -> PreTrainedModel:
    """The model of `config` whose parameters are `tensors` by name, or pieces of them; all else as in `teacher`."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=teacher.dtype,
            attn_implementation=teacher.config._attn_implementation,
            experts_implementation=teacher.config._experts_implementation,
        )
    for name, view in cut_tensors(tensors, shapes_of(model)).items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(view, requires_grad=False))
    model.tie_weights()
    model.generation_config = copy.deepcopy(teacher.generation_config)
    return nn.Module.to(model, teacher.device).eval()
