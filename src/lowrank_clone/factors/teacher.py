"""The teacher as the type that a plan is of: an equivalent one, where the teacher's refuses the student's width."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..plan.pieces import cut_tensors, shapes_of
from .student import align_experts


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
