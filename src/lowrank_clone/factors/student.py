"""The student as a module: built from the plan, its inherited tensors copied (`links.py` links the rest)."""

from __future__ import annotations

import copy
import logging

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import InputError
from ..plan.roles import Plan

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def align_experts(model: PreTrainedModel) -> None:
    """Let experts run one by one where the kernel for all of them at once does not take their widths.

    `torch.nn.functional.grouped_mm` wants rows of whole 16 bytes: widths that are multiples of 4 in float32, of 8 in
    bfloat16; and it knows no float64.
    """
    if model.config._experts_implementation == "grouped_mm" and model.dtype == torch.float64:
        model.set_experts_implementation("eager")
    rows = {n * p.element_size() for p in model.parameters() if p.ndim == 3 for n in p.shape[-2:]}
    if model.config._experts_implementation == "grouped_mm" and any(row % 16 for row in rows):
        model.set_experts_implementation("eager")
        logger.warning(
            "`%s` of width %d: its experts run one by one, slower; at a multiple of %d they would run at once",
            model.config.model_type,
            model.config.hidden_size,
            16 // torch.empty(0, dtype=model.dtype).element_size(),
        )


def build_student(teacher: PreTrainedModel, plan: Plan, dtype: torch.dtype, inherit: bool = True) -> PreTrainedModel:
    """The student, its inherited parameters and buffers copied and frozen, all else still as its family starts it.

    Args:
        inherit: False leaves everything as the family starts it (a student from scratch).

    Raises:
        InputError: `dtype` is none that a student can be trained in.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: got {dtype!r}, expected one of {', '.join(map(str, DTYPES))}")
    with torch.device(teacher.device):
        student = AutoModelForCausalLM.from_config(
            plan.student_config,
            dtype=dtype,
            attn_implementation=teacher.config._attn_implementation,
            experts_implementation=teacher.config._experts_implementation,
        )
    align_experts(student)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    if not inherit:
        return student
    parameters, buffers = dict(teacher.named_parameters(remove_duplicate=False)), dict(teacher.named_buffers())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if plan.roles[name].kind == "inherited":
                parameter.copy_(parameters[name]).requires_grad_(False)
        for name in student.state_dict():
            if name in buffers:
                student.get_buffer(name).copy_(buffers[name])
    return student
