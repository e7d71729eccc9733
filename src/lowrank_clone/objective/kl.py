"""The KL to the teacher and its gradient for a block of rows, in place (LRC, arXiv 2505.12781, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowWeights:
    """Temperature, and what each row's softmax weighs in the gradient, [block, 1]; 0 for rows that do not count."""

    temperature: float
    lm: Tensor
    kl: Tensor


def kl_of_rows(
    p: Tensor, student: Tensor, teacher: Tensor, scratch: Tensor, weights: RowWeights
) -> tuple[Tensor, Tensor]:
    """KL of each row at temperature T, [block], and the gradient `w_lm p + w_kl (p_S - p_T)` [block, V].

    KL = log sum_v p_T exp(m - gap) with m = sum_v p_T gap: no difference of nearly equal numbers where it is small.
    The four [block, V] inputs are overwritten; the gradient lies where the student's logits lay. A buffer is named
    after what it holds from there on.

    Args:
        p: The student's softmax at temperature 1.
    """
    at_one = weights.temperature == 1.0
    log_z = log_normaliser(student, p)
    gradient = p.mul_(weights.lm + weights.kl if at_one else weights.lm)
    if not at_one:
        student *= 1 / weights.temperature
        teacher *= 1 / weights.temperature
    p_teacher = torch.softmax(teacher, -1, out=scratch)
    log_z_teacher = log_normaliser(teacher, p_teacher)
    gap = teacher.sub_(student)
    expected_gap = torch.linalg.vecdot(p_teacher, gap)
    excess = torch.sub(expected_gap.unsqueeze(-1), gap, out=gap).expm1_()
    small = torch.linalg.vecdot(p_teacher, excess).log1p()
    if not at_one:
        p_student = torch.softmax(student, -1, out=excess)
        log_z = log_normaliser(student, p_student)
        gradient.addcmul_(p_student, weights.kl)
    gradient = torch.addcmul(gradient, p_teacher, weights.kl, value=-1, out=student)
    plain = expected_gap + (log_z - log_z_teacher).squeeze(-1)
    # Where exp overflows the plain form is exact.
    return torch.where(small.isfinite(), small.to(plain.dtype), plain), gradient


def log_normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row, [n, 1], from its softmax: where both are largest, `log z = logit - log p`.

    One number a row, so in float64 where the device has it: the KL subtracts two of them that are nearly equal.
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.amax(-1, keepdim=True).to(exact) - probabilities.amax(-1, keepdim=True).to(exact).log()
