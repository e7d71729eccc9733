"""The student as a module: built from the plan, its inherited tensors copied, its leaves linked to factors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import InputError
from ..plan.roles import Plan
from ..precision import wide_dtype
from .bases import Identity, Projected
from .factors import Factors, Link


def check_teacher(teacher: PreTrainedModel) -> None:
    """Refuse weights that can't serve as a basis.

    Raises:
        InputError: A parameter is quantised.
    """
    for name, parameter in teacher.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise InputError(
                f"teacher parameter `{name}` is stored as {parameter.dtype}; expected float32, bfloat16 or float16, "
                "since its weights are the basis of the student's; load the teacher without quantisation"
            )


def build_student(teacher: PreTrainedModel, plan: Plan, dtype: torch.dtype, inherit: bool = True) -> PreTrainedModel:
    """The student, its inherited parameters and buffers copied and frozen, all else still as its family starts it.

    Args:
        inherit: False leaves everything as the family starts it (a student from scratch).
    """
    with torch.device(teacher.device):
        student = AutoModelForCausalLM.from_config(
            plan.student_config,
            dtype=dtype,
            attn_implementation=teacher.config._attn_implementation,
            experts_implementation=teacher.config._experts_implementation,
        )
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


def link_factors(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    start: Mapping[str, Tensor] | None,
    share_head: bool = False,
) -> Factors:
    """Factors and the links from them to the student's leaves: every matrix `projected`.

    Args:
        start: Factors by name; vectors that it leaves out start as the student has them. None for no factors of the
            teacher at all: then everything is trained directly, from what the student holds (the baselines).
        share_head: Let an untied LM head hang on the input embedding's factor.
    """
    embedding = next(n for n, p in student.named_parameters() if p is student.get_input_embeddings().weight)
    basis = dict(teacher.named_parameters(remove_duplicate=False))
    factors: dict[str, Tensor] = {}
    links: list[Link] = []
    for name, leaf in student.named_parameters():
        role, wide = plan.roles[name], wide_dtype(leaf.dtype)
        if start is None or role.kind == "vector":
            factors[name] = (start or {}).get(name, leaf.detach()).to(leaf.device, wide)
            leaf.requires_grad_()
            links.append(Link(leaf, Identity(), name, name))
        elif role.kind != "inherited":
            assert role.factor is not None and role.axis is not None
            factor = embedding if share_head and role.group == "head" else role.factor
            if factor == name:
                factors[name] = start[name].to(leaf.device, wide)
            links.append(Link(leaf, Projected(basis[name], role.axis), factor, name))
    return Factors(factors, links)


class Leaves(nn.Module):
    """Leaf tensors by a name with dots in it."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], like: PreTrainedModel) -> None:
        super().__init__()
        self._names = list(shapes)
        self._leaves = nn.ParameterList(
            [nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device)) for shape in shapes.values()]
        )

    def items(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Name and leaf of each."""
        return zip(self._names, self._leaves, strict=True)
