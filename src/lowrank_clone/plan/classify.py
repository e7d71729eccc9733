"""The plan: what every parameter of the student is, read off shapes alone.

The student is the teacher's architecture with one number changed, the residual width `d_T -> d_S`. Building both on the
meta device and comparing shapes name by name says what each parameter is, with no knowledge of the family
(LRC, arXiv 2505.12781, section 3; the rule is ours):

    same shape                      inherited   copied from the teacher, frozen
    input axis  d_T -> d_S          read        W_S = W_T Z        (q, k, v, gate, up, router, embedding, LM head)
    output axis d_T -> d_S          write       W_S = Z^T W_T      (attention output, FFN down)
    a write's bias                  bias        b_S = Z^T b_T      with the write's own Z
    any other vector d_T -> d_S     vector      trained directly   (norms of the residual width)

Anything else is an error: the family ties another width to `hidden_size`, or derives a buffer from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from .advice import advice
from .architecture import check_runs, on_meta
from .decoder import decoder_config
from .layers import Groups
from .roles import Group, Plan, Role, RoleKind, TapSpec
from .student_config import check_request, configs


def check_counterparts(
    teacher: PreTrainedModel, student: PreTrainedModel, teacher_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a student whose parameters, ties or buffers are not the teacher's in all but width.

    Raises:
        InputError: What differs first.
    """
    kind = teacher.config.model_type
    student_names = {name for name, _ in student.named_parameters(remove_duplicate=False)}
    for name in sorted(student_names ^ set(teacher_shapes)):
        owner = "student" if name in student_names else "teacher"
        raise InputError(f"`{kind}`: parameter `{name}` exists in the {owner} only; the two must differ in width alone")
    tied_in_student = student_names - {name for name, _ in student.named_parameters()}
    untied_in_teacher = {name for name, _ in teacher.named_parameters()}
    for name in sorted(tied_in_student & untied_in_teacher):
        raise InputError(
            f"`{kind}`: `{name}` is tied in the student but a matrix of its own in the teacher; "
            "leave `student.tie_word_embeddings` false"
        )
    buffers = {name: tuple(b.shape) for name, b in teacher.named_buffers()}
    for name, buffer in student.named_buffers():
        if buffers.get(name) != tuple(buffer.shape):
            raise InputError(
                f"`{kind}`: buffer `{name}` has shape {list(buffers.get(name, ()))} in the teacher and "
                f"{list(buffer.shape)} in the student; this family derives it from `hidden_size`"
            )


@dataclass(frozen=True)
class Shape:
    """One parameter: its shape in both models, and which axis (negative) is the residual width's, None for none."""

    name: str
    teacher: tuple[int, ...]
    student: tuple[int, ...]
    axis: int | None

    @property
    def inner(self) -> int:
        """The other width of a matrix (of each matrix of a stack of them)."""
        assert self.axis is not None
        return self.teacher[-3 - self.axis]


def input_axis(module: nn.Module, shapes: Iterable[Shape]) -> int:
    """-1 where this module stores matrices [out, in], -2 where it stores [in, out].

    Raw expert tensors declare it (`is_transposed`). Where two of them do not, the one with the larger inner width
    reads: gate and up are stored together, down alone.
    """
    if isinstance(module, Conv1D):
        return -2
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return -2 if declared else -1
    stacks = [s for s in shapes if s.axis is not None and len(s.teacher) == 3 and not isinstance(module, _ConvNd)]
    if len({shape.inner for shape in stacks}) > 1:
        return max(stacks, key=lambda shape: shape.inner).axis or -1
    return -1


def residual_axis(
    name: str, teacher: tuple[int, ...], student: tuple[int, ...], d_t: int, d_s: int, model_type: str
) -> int | None:
    """The axis (negative) that went from `d_T` to `d_S`, or None where the shapes are equal."""
    changed = [i - len(teacher) for i in range(len(teacher)) if teacher[i] != student[i]]
    if not changed:
        return None
    if len(changed) == 1 and (teacher[changed[0]], student[changed[0]]) == (d_t, d_s):
        return changed[0]
    raise InputError(
        f"`{model_type}`: `{name}` goes from {list(teacher)} to {list(student)} when hidden_size goes from {d_t} to "
        f"{d_s}; expected one axis {d_t} -> {d_s}. This family ties an inner width to `hidden_size`, so only another "
        "architecture would be narrower; it is not supported"
    )


def is_bias_of(shape: Shape, write: Role) -> bool:
    """Whether a parameter is the bias of a write: it has the write's shape without its input axis."""
    if shape.axis != -1 or write.axis is None:
        return False
    input_axis = len(write.teacher_shape) - 3 - write.axis
    return shape.teacher == tuple(n for i, n in enumerate(write.teacher_shape) if i != input_axis)


def make_plan(teacher: PretrainedConfig, hidden_size: int, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Classify every parameter of a student of `hidden_size` channels. No weights are read, nothing is allocated.

    Args:
        teacher: The teacher's config.
        hidden_size: `d_S`, below the teacher's.
        overrides: Other fields of the student's config, for instance `rms_norm_eps` or `tie_word_embeddings`.

    Raises:
        InputError: The teacher is no decoder language model, `hidden_size` or an override is not usable, or a
            parameter fits no role.
    """
    teacher, overrides = decoder_config(teacher), {} if overrides is None else overrides
    check_request(teacher, hidden_size, overrides)
    try:
        return _plan(teacher, hidden_size, overrides)
    except InputError as refusal:
        own_type = functools.partial(_plan, ways=((True, False), (False, False)))
        raise InputError(f"{refusal}{advice(teacher, hidden_size, overrides, own_type)}") from refusal


def _plan(
    teacher: PretrainedConfig,
    hidden_size: int,
    overrides: Mapping[str, Any],
    ways: Iterable[tuple[bool, bool]] = ((True, True), (False, False)),
) -> Plan:
    """`ways` to write the configs are tried in turn: with `head_dim` explicit or not, with other types or not."""
    refusals = []
    for explicit_head_dim, other_types in ways:
        try:
            wide, narrow = configs(teacher, hidden_size, overrides, explicit_head_dim, other_types)
            reference, student = on_meta(wide), on_meta(narrow)
            found = _classify(reference, student, teacher.hidden_size, hidden_size)
            plan = Plan(wide, narrow, *found, teacher_type=teacher.model_type)
            check_runs(reference, student)
            return plan
        except InputError as refusal:
            refusals.append(refusal)
    # The first that is about the family's shapes; a config that can't even be made tells less.
    raise min(refusals, key=lambda refusal: refusal.__cause__ is not None)


def _classify(
    teacher: PreTrainedModel, student: PreTrainedModel, d_t: int, d_s: int
) -> tuple[dict[str, Role], tuple[TapSpec, ...]]:
    teacher_shapes = {name: tuple(p.shape) for name, p in teacher.named_parameters(remove_duplicate=False)}
    student_parameters = dict(student.named_parameters())
    check_counterparts(teacher, student, teacher_shapes)
    groups = Groups(student)
    roles: dict[str, Role] = {}
    taps: list[TapSpec] = []
    for module_name, module in student.named_modules():
        names = [f"{module_name}.{key}" if module_name else key for key in module._parameters]
        own = {name: student_parameters[name] for name in names if name in student_parameters}
        shapes = []
        for name, parameter in own.items():
            both = teacher_shapes[name], tuple(parameter.shape)
            shapes.append(Shape(name, *both, residual_axis(name, *both, d_t, d_s, groups.model_type)))
        found = _classify_module(module_name, module, shapes, groups)
        roles.update({role.name: role for role in found})
        taps += _taps_of(module, found)
    return {name: roles[name] for name in student_parameters}, tuple(taps)


def _classify_module(module_name: str, module: nn.Module, shapes: list[Shape], groups: Groups) -> list[Role]:
    """Roles of the parameters that `module` itself owns; its matrices first, since a bias follows its write."""
    reads_at = input_axis(module, shapes)
    roles: list[Role] = []
    for shape in sorted(shapes, key=lambda shape: -len(shape.teacher)):
        write = next((role for role in roles if role.kind == "write" and is_bias_of(shape, role)), None)
        if shape.axis is None:
            role = _role(shape, module_name, groups, "inherited", "inherited")
        elif write is not None:
            role = _role(shape, module_name, groups, "bias", write.group, factor=write.name)
        elif len(shape.teacher) == 1:
            role = _role(shape, module_name, groups, "vector", "vector", factor=shape.name)
        else:
            role = _matrix(shape, module_name, module, groups, reads_at)
        roles.append(role)
    return roles


def _matrix(shape: Shape, module_name: str, module: nn.Module, groups: Groups, reads_at: int) -> Role:
    """A read or a write.

    Raises:
        InputError: It is a convolution over the residual stream.
    """
    if isinstance(module, _ConvNd) or (shape.axis or 0) < -2:
        raise InputError(
            f"`{groups.model_type}`: `{shape.name}` {list(shape.teacher)} convolves the residual stream channel by "
            "channel, which no projection of channels commutes with; this family is not supported"
        )
    kind: RoleKind = "read" if shape.axis == reads_at else "write"
    group = groups.of(shape.name, module_name, shape.teacher)
    return _role(shape, module_name, groups, kind, group, factor=shape.name, inner=shape.inner)


def _role(
    shape: Shape,
    module_name: str,
    groups: Groups,
    kind: RoleKind,
    group: Group,
    factor: str | None = None,
    inner: int | None = None,
) -> Role:
    both = shape.teacher, shape.student
    layer = groups.layer(shape.name)
    return Role(shape.name, kind, group, module_name, *both, shape.axis, inner=inner, factor=factor, layer=layer)


def _taps_of(module: nn.Module, roles: list[Role]) -> list[TapSpec]:
    """What can be compared at the output of `module`.

    A linear's output is its weight's tap. A module of raw tensors (experts, router) shows only its own output: the
    block's, through its write, or, with no write, its read's.
    """
    matrices = [r for r in roles if r.kind in ("read", "write") and r.layer is not None and r.group != "embedding"]
    writes = [r for r in matrices if r.kind == "write"]
    shown = writes or matrices
    if len(shown) != 1 or isinstance(module, nn.Embedding):
        return []
    role = shown[0]
    assert role.layer is not None and role.inner is not None
    kind: Literal["read", "write"] = "write" if role.kind == "write" else "read"
    return [TapSpec(role.name, role.module, kind, role.group, role.layer, role.inner)]
