"""What a parameter of the student can be, and the plan that holds every parameter's role (see `classify.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from transformers import PretrainedConfig

Group = Literal["embedding", "head", "attention", "ffn", "experts", "vector", "inherited"]

RoleKind = Literal["read", "write", "bias", "vector", "inherited"]


@dataclass(frozen=True)
class Role:
    """What one parameter of the student is. `axis` (negative) is the residual width's, `inner` the other width."""

    name: str
    kind: RoleKind
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
    teacher_type: str = ""
    """The teacher's own model type, where `teacher_config` is of an equivalent one."""

    @property
    def teacher_width(self) -> int:
        """`d_T`."""
        return int(self.teacher_config.hidden_size)

    @property
    def student_width(self) -> int:
        """`d_S`."""
        return int(self.student_config.hidden_size)

    def of_kind(self, *kinds: RoleKind) -> list[Role]:
        """The roles of these kinds, in the student's order."""
        return [role for role in self.roles.values() if role.kind in kinds]

    @property
    def deployed_parameters(self) -> int:
        """Parameters of the exported student, tied ones once."""
        return sum(math.prod(role.student_shape) for role in self.roles.values())

    @property
    def trained_parameters(self) -> int:
        """How many numbers the optimiser holds when every matrix is `projected`."""
        return sum(map(self.trained, self.roles.values()))

    def trained(self, role: Role, kind: str = "projected") -> int:
        """How many numbers the optimiser holds for `role` if its group is parameterised as `kind`.

        The bias of a projected write adds none: the write's factor generates it.
        """
        if kind == "projected" and role.kind in ("read", "write", "bias"):
            return 0 if role.kind == "bias" else self.teacher_width * self.student_width
        return 0 if role.kind == "inherited" else math.prod(role.student_shape)
