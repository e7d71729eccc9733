"""A student under construction, for starts that look at what the student does."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...factors.bases import Projected
from ...factors.student import build_student
from ...plan.roles import Plan, Role
from .norms import Norm


class TrialStudent:
    """A float32 student under construction: what is set here is generated into its weights at once.

    What has been set so far is the start, `result()`.

    Args:
        share_head: Whether an untied LM head has the embedding's factor.
    """

    def __init__(self, teacher: PreTrainedModel, plan: Plan, share_head: bool) -> None:
        devices = [teacher.device] if teacher.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            self.student = build_student(teacher, plan, torch.float32).eval().requires_grad_(False)
            z = torch.randn(plan.teacher_width, plan.student_width) / plan.student_width**0.5
        self.plan, self._share_head = plan, share_head
        self.teacher_weights = {name: p.detach() for name, p in teacher.named_parameters(remove_duplicate=False)}
        self._leaves = dict(self.student.named_parameters())
        names = {id(parameter): name for name, parameter in self._leaves.items()}
        self.embedding = names[id(self.student.get_input_embeddings().weight)]
        self.head = names[id(self.student.get_output_embeddings().weight)]
        self._biases: dict[str, list[Role]] = {}
        for role in plan.of_kind("bias"):
            assert role.factor is not None
            self._biases.setdefault(role.factor, []).append(role)
        self.factors: dict[str, Tensor] = {}
        self.set_factors(z.to(teacher.device))

    @property
    def tied(self) -> bool:
        """Whether the embedding's factor is the head's."""
        return self._share_head or self.head == self.embedding

    def set_factors(self, z: Tensor) -> None:
        """One factor for every read and write."""
        for role in self.plan.of_kind("read", "write"):
            self.set_factor(role.name, z)

    def set_factor(self, name: str, z: Tensor) -> None:
        """The factor of a read or write, [d_T, d_S]."""
        self.factors[name] = z = z.float().to(self._leaves[name].device)
        for role in (self.plan.roles[name], *self._biases.get(name, ())):
            assert role.axis is not None
            self._leaves[role.name].copy_(Projected(self.teacher_weights[role.name], role.axis).generate(z))
        if self._share_head and name == self.embedding != self.head:
            self.set_factor(self.head, z)

    def set_vector(self, name: str, value: Tensor) -> None:
        """A vector's value as it is stored, [d_S]."""
        self._leaves[name].copy_(value)

    def set_norm(self, norm: Norm, gain: Tensor | float | None = None, bias: Tensor | float | None = None) -> None:
        """A norm's gains and biases, each [d_S] or one number for all; None leaves them."""
        for name, value in ((norm.weight, gain), (norm.bias, bias)):
            if name is not None and value is not None:
                leaf = self._leaves[name]
                offset = norm.offset if name == norm.weight else 0.0
                leaf.copy_((torch.as_tensor(value).float().to(leaf.device) - offset).expand_as(leaf))

    def teacher_gain(self, norm: Norm) -> Tensor:
        """A norm's gains in the teacher, [d_T] float32."""
        if norm.weight is None:
            return torch.ones(self.plan.teacher_width, device=self.student.device)
        return self.teacher_weights[norm.weight].float() + norm.offset

    def result(self) -> dict[str, Tensor]:
        """Factors and vectors by the student's parameter name, float32."""
        vectors = {role.name: self._leaves[role.name].detach().clone() for role in self.plan.of_kind("vector")}
        return {**{name: z.contiguous() for name, z in self.factors.items()}, **vectors}


def round_to_one(ratio: float) -> float:
    """`ratio`, or 1 if it is within 1 % of 1.

    Constants that depend on the width (Gemma's embedding scale) differ by more.
    """
    return 1.0 if abs(ratio - 1) < 1e-2 else ratio


def one_hot(channels: Tensor, width: int) -> Tensor:
    """`Z[i_j, j] = 1` for the channels in ascending order, [width, len(channels)], float32."""
    chosen = channels.sort().values
    z = torch.zeros(width, len(chosen), device=channels.device)
    z[chosen, torch.arange(len(chosen), device=channels.device)] = 1
    return z
