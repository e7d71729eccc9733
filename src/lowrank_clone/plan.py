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

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PretrainedConfig, PreTrainedModel

from . import architecture
from .architecture import Group, Groups
from .errors import InputError

Kind = Literal["read", "write", "bias", "vector", "inherited"]


@dataclass(frozen=True)
class Role:
    """What one parameter of the student is. `axis` (negative) is the residual width's, `inner` the other width."""

    name: str
    kind: Kind
    group: Group
    module: str
    teacher_shape: tuple[int, ...]
    student_shape: tuple[int, ...]
    axis: int | None = None
    inner: int | None = None
    factor: str | None = None
    layer: int | None = None


@dataclass(frozen=True)
class TapSpec:
    """One compared activation: the output of `module`, [tokens, `width`] of the model it is taken from.

    `kind` is the role of the weight `name` that produces it: a read's output has one width in both models, a write's
    is compared after that write's own Z.
    """

    name: str
    module: str
    kind: Literal["read", "write"]
    group: Group
    layer: int
    inner: int


@dataclass(frozen=True)
class Plan:
    """Every parameter's role by the student's name, and the taps, in the order of the student's modules."""

    teacher_config: PretrainedConfig
    student_config: PretrainedConfig
    roles: Mapping[str, Role] = field(repr=False)
    taps: tuple[TapSpec, ...] = field(repr=False)

    @property
    def teacher_width(self) -> int:
        """`d_T`."""
        return int(self.teacher_config.hidden_size)

    @property
    def student_width(self) -> int:
        """`d_S`."""
        return int(self.student_config.hidden_size)

    def of_kind(self, *kinds: Kind) -> list[Role]:
        """The roles of these kinds, in the student's order."""
        return [role for role in self.roles.values() if role.kind in kinds]

    @property
    def deployed_parameters(self) -> int:
        """Parameters of the exported student, tied ones once."""
        return sum(math.prod(role.student_shape) for role in self.roles.values())

    @property
    def trained_parameters(self) -> int:
        """Numbers that the optimiser sees when every matrix is `projected`."""
        return sum(map(self.trained, self.roles.values()))

    def trained(self, role: Role, kind: str = "projected") -> int:
        """Those of one parameter whose group is of this kind; a projected bias hangs on its write's factor."""
        if kind == "projected" and role.kind in ("read", "write", "bias"):
            return 0 if role.kind == "bias" else self.teacher_width * self.student_width
        return 0 if role.kind == "inherited" else math.prod(role.student_shape)


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
    teacher = architecture.decoder_config(teacher)
    reference = architecture.on_meta(teacher)
    refusals = []
    for explicit in (True, False):
        try:
            config = architecture.student_config(teacher, hidden_size, overrides, explicit_head_dim=explicit)
            student = architecture.on_meta(config)
            plan = Plan(teacher, config, *_classify(reference, student, teacher.hidden_size, hidden_size))
            architecture.check_runs(reference, student)
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
    architecture.check_counterparts(teacher, student, teacher_shapes)
    modules = dict(student.named_modules())
    groups = Groups(student)
    roles: dict[str, Role] = {}
    taps: list[TapSpec] = []
    for module_name, module in modules.items():
        names = [f"{module_name}.{key}" if module_name else key for key in module._parameters]
        own = {name: student_parameters[name] for name in names if name in student_parameters}
        found = _classify_module(module_name, module, own, teacher_shapes, d_t, d_s, groups)
        roles.update({role.name: role for role in found})
        taps += _taps_of(module, found)
    return {name: roles[name] for name in student_parameters}, tuple(taps)


def _classify_module(
    module_name: str,
    module: nn.Module,
    own: Mapping[str, nn.Parameter],
    teacher_shapes: Mapping[str, tuple[int, ...]],
    d_t: int,
    d_s: int,
    groups: Groups,
) -> list[Role]:
    """Roles of the parameters that `module` itself owns; its matrices first, since a bias follows its write."""
    shapes = {name: (teacher_shapes[name], tuple(p.shape)) for name, p in own.items()}
    axes = {name: architecture.residual_axis(name, *both, d_t, d_s, groups.model_type) for name, both in shapes.items()}
    reads_at = architecture.input_axis(
        module, {name: shapes[name][0] for name, axis in axes.items() if axis is not None}, axes
    )
    roles: list[Role] = []
    for name, (teacher_shape, student_shape) in sorted(shapes.items(), key=lambda item: -len(item[1][0])):
        axis = axes[name]
        writes = (r for r in roles if r.kind == "write")
        write = next((w for w in writes if architecture.is_bias_of(teacher_shape, axis, w.teacher_shape, w.axis)), None)
        group = groups.of(name, module_name, teacher_shape)
        layer = groups.layer(name)
        common = (module_name, teacher_shape, student_shape, axis)
        if axis is None:
            roles.append(Role(name, "inherited", "inherited", *common, layer=layer))
        elif write is not None:
            roles.append(Role(name, "bias", write.group, *common, factor=write.name, layer=layer))
        elif len(teacher_shape) == 1:
            roles.append(Role(name, "vector", "vector", *common, factor=name, layer=layer))
        else:
            if isinstance(module, _ConvNd) or axis < -2:
                raise InputError(
                    f"`{groups.model_type}`: `{name}` {list(teacher_shape)} convolves the residual stream channel by "
                    "channel, which no projection of channels commutes with; this family is not supported"
                )
            inner = teacher_shape[-3 - axis]
            kind: Kind = "read" if axis == reads_at else "write"
            roles.append(Role(name, kind, group, *common, inner=inner, factor=name, layer=layer))
    return roles


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
