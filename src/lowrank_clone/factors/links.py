"""Every link of a clone at its start: which factor generates which leaf of the student, and by which linear map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..plan.roles import Plan
from ..precision import wide_dtype
from .bases import Identity, Projected
from .factors import Factors, Link

# A write's Z beside the write itself: the leaf that its tap's target uses, and the factor of that leaf once the write
# has another one.
TARGET = ".Z"


class Targets(nn.Module):
    """The leaves that the taps' targets use, by the name of the write whose Z each of them is.

    A write's Z also makes its tap's target. A leaf of its own lets both gradients meet in the factor.
    """

    def __init__(self, writes: Iterable[str], plan: Plan, like: PreTrainedModel) -> None:
        super().__init__()
        shape = (plan.teacher_width, plan.student_width)
        self._names = list(writes)
        self._leaves = nn.ParameterList(
            [nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device)) for _ in self._names]
        )

    def items(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Name of the write and leaf, [d_T, d_S]."""
        return zip(self._names, self._leaves, strict=True)


def link_all(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    start: Mapping[str, Tensor] | None,
    targets: Targets,
    share_head: bool = False,
) -> Factors:
    """Factors and the links from them to all leaves, those of the taps' targets included: every matrix `projected`.

    Args:
        start: Factors by name; vectors that it leaves out start as the student has them. None for no factors of the
            teacher at all: then everything is trained directly, from what the student holds (the baselines).
        share_head: Let an untied LM head hang on the input embedding's factor.

    Raises:
        InputError: `start` lacks a matrix, names what is no factor, or a shape differs; or there is no start of the
            teacher's and there are targets.
    """
    embedding = next(name for name, p in student.named_parameters() if p is student.get_input_embeddings().weight)
    teacher_weights = dict(teacher.named_parameters(remove_duplicate=False))
    factors: dict[str, Tensor] = {}
    links: list[Link] = []
    if start is not None:
        _check_start(plan, start, share_head)
    elif list(targets.items()):
        raise InputError(
            "start: got `scratch` beside a clone_weight, expected clone_weight 0; a student from scratch has no Z that "
            "brings the teacher's writes to its width"
        )
    for name, leaf in student.named_parameters():
        role, dtype = plan.roles[name], wide_dtype(leaf.dtype)
        if start is None or role.kind == "vector":
            factors[name] = (start or {}).get(name, leaf.detach()).to(leaf.device, dtype)
            leaf.requires_grad_()
            links.append(Link(leaf, Identity(), name, name))
        elif role.kind != "inherited":
            assert role.factor is not None and role.axis is not None
            factor = embedding if share_head and role.group == "head" else role.factor
            if factor == name:
                factors[name] = start[name].to(leaf.device, dtype)
            links.append(Link(leaf, Projected(teacher_weights[name], role.axis), factor, name))
    links += [Link(leaf, Identity(), name, name + TARGET) for name, leaf in targets.items()]
    return Factors(factors, links)


def _check_start(plan: Plan, start: Mapping[str, Tensor], share_head: bool) -> None:
    matrices = plan.of_kind("read", "write")
    shapes: dict[str, tuple[int, ...]] = {role.name: role.student_shape for role in plan.of_kind("vector")}
    shapes |= {role.name: (plan.teacher_width, plan.student_width) for role in matrices}
    missing = [role.name for role in matrices if role.name not in start and not (share_head and role.group == "head")]
    if missing:
        raise InputError(f"start: got no factor `{missing[0]}`, expected [d_T, d_S] for each matrix of the plan")
    for name, value in start.items():
        if name not in shapes:
            raise InputError(f"start: got `{name}`, which is no factor of this plan; see `make_plan(...).roles`")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"start `{name}`: got {got}, expected a tensor of floating-point numbers")
        if tuple(value.shape) != shapes[name]:
            raise InputError(f"start `{name}`: got shape {list(value.shape)}, expected {list(shapes[name])}")
        if not value.isfinite().all():
            raise InputError(f"start `{name}`: got numbers that are not finite")
