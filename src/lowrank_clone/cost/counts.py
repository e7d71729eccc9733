"""What of a plan is multiplied, kept and trained: the counts behind FLOPs and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ..objective.objective import Objective
from ..plan.roles import Plan, Role, TapSpec


class Counts:
    """Counts that FLOPs and memory share.

    Args:
        kinds: Parameterisation by group, `projected` unless given.
        taps: What is compared if the objective compares anything.
    """

    def __init__(self, plan: Plan, kinds: Mapping[str, str], objective: Objective, taps: Iterable[TapSpec]) -> None:
        self.plan, self.kinds, self.objective = plan, kinds, objective
        self.taps = list(taps) if objective.clone_weight != 0 else []
        config = plan.student_config.to_dict()
        self.vocabulary = int(plan.student_config.vocab_size)
        self._chosen = config.get("num_experts_per_tok") or 1
        self.layers = len({r.layer for r in plan.roles.values() if r.layer is not None})
        # The matrices of the layers; embeddings are looked up, and the head belongs to the losses.
        self.matrices = [r for r in plan.of_kind("read", "write") if r.group not in ("embedding", "head")]
        # Not the experts' biases, which are matrices in shape only.
        experts = {r.module for r in self.matrices if len(r.student_shape) == 3}
        self.inherited = [r for r in plan.of_kind("inherited") if len(r.student_shape) > 1 and r.module not in experts]
        self._attention_outputs = {r.name for r in self.matrices if r.group == "attention" and r.kind == "write"}

    @property
    def teacher_runs(self) -> bool:
        """Whether the objective needs the teacher's forward pass."""
        return self.has_kl or self.objective.clone_weight != 0

    @property
    def has_kl(self) -> bool:
        """Whether the objective needs the teacher's logits."""
        return self.objective.kl_weight != 0

    def is_attention_output(self, role: Role) -> bool:
        """Whether this is the matrix behind an attention."""
        return role.name in self._attention_outputs

    def share(self, role: Role) -> float:
        """Share of the role's numbers that a token meets: of raw expert tensors, that of the experts it is sent to."""
        return self._chosen / role.student_shape[0] if len(role.student_shape) == 3 else 1.0

    def active(self, role: Role, shape: tuple[int, ...]) -> float:
        """How many of the role's numbers a token is multiplied with, at the shape of one of the models."""
        return math.prod(shape) * self.share(role)

    def kind(self, role: Role) -> str:
        """The parameterisation of the role's group."""
        return self.kinds.get(role.group, "projected")

    def at_teacher_width(self, tap: TapSpec) -> bool:
        """Whether this tap is compared before its Z."""
        return tap.kind == "write" and tap.group == "attention" and self.objective.attn_out_tap == "teacher"

    def tap_flops(self) -> float:
        """FLOPs of the comparison, a token.

        A write's target is projected by its Z, and that Z has a gradient if it may; at teacher width, the student's
        input goes through the teacher's matrix, forward and backward.
        """
        d_t, d_s = self.plan.teacher_width, self.plan.student_width
        student_width = (4.0 if self.objective.target_gradient else 2.0) * d_t * d_s
        writes = [tap for tap in self.taps if tap.kind == "write"]
        return sum(4.0 * d_t * tap.inner if self.at_teacher_width(tap) else student_width for tap in writes)

    def tap_width(self, tap: TapSpec, width: int) -> int:
        """Channels of a tap in a model of this residual width."""
        return width if tap.kind == "write" else tap.inner

    def generation(self, role: Role) -> float:
        """FLOPs of pull and push of one matrix, once a step."""
        kind = self.kind(role)
        if kind == "projected":
            return 4.0 * math.prod(role.teacher_shape) * self.plan.student_width
        if kind == "core" and role.inner is not None:
            rank = min(role.inner, self.plan.teacher_width)
            reflections = 4.0 * role.inner * rank - 2.0 * rank**2
            return 2 * reflections * math.prod(role.student_shape) / role.inner
        return 0.0

    def trained(self) -> int:
        """Trained parameters."""
        own = sum(self.plan.trained(role, self.kind(role)) for role in self.plan.roles.values())
        # A write that is trained itself leaves its Z to its tap's target.
        left = sum(self.kind(self.plan.roles[tap.name]) != "projected" for tap in self.target_leaves())
        return own + left * self.plan.teacher_width * self.plan.student_width

    def target_leaves(self) -> list[TapSpec]:
        """The taps whose target is made by a leaf of their own, [d_T, d_S]."""
        return [tap for tap in self.taps if tap.kind == "write" and not self.at_teacher_width(tap)]
