"""Language-model cross-entropy and KL to the teacher: lean in memory, exact in float32.

LRC, arXiv 2505.12781, section 3.2:

    L = lm_weight * LM + kl_weight * T^2 * mean_token KL(p_T || p_S at temperature T) + clone_weight * sum_taps MSE

Axes: n tokens, V vocabulary, d_T and d_S the residual widths. `FusedLMKL` takes its gradients in the forward pass,
while a chunk's logits are at hand, and keeps them on its own context and not in autograd's saved tensors, so that
gradient checkpointing neither recomputes nor drops them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..precision import wide_dtype
from .head import Head, widens_products
from .tokens import token_count


def lm_kl_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    targets: Tensor,
    valid: Tensor,
    *,
    temperature: float = 1.0,
    lm_weight: float = 1.0,
    kl_weight: float = 1.0,
    lm_count: Tensor | float | None = None,
    kl_count: Tensor | float | None = None,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Language-model cross-entropy and forward KL to the teacher in one pass over chunks of tokens.

        lm = 1/lm_count * sum_i -log p_S(targets_i)                                            (T = 1)
        kl = T^2/kl_count * sum_i sum_v p_T(v) (log p_T(v) - log p_S(v)),    p = softmax(logits / T)

    Logits and softmax are float32 whatever the input. At T = 40 a row of logits spans less than one unit, the KL is a
    difference of nearly equal numbers, and rounding the logits to bfloat16 moves it by more than its own size. Never
    more than two [chunk, V] tensors are alive, beside smaller blocks of their rows, and each head is read once a chunk.

    Args:
        student_hidden: [n, d_S]; gradients flow to it and to the student head's weight and bias.
        teacher_hidden: [n, d_T], or None for no teacher (`kl` is then 0).
        targets: [n] token ids; -100 leaves the token out of `lm`.
        valid: [n] bool; False leaves the token out of `kl`.
        lm_count, kl_count: What the sums are divided by: this call's own counts unless given. Under gradient
            accumulation they are those of the whole batch, so that micro-batches add up to it.
        chunk_elements: Size of one [chunk, V] tensor; a default by device.

    Returns:
        `lm_weight * lm + kl_weight * kl`, differentiable once, and `lm` and `kl` without gradient. Scalars, float32
        (float64 for float64 input).
    """
    lm_count = token_count(lm_count, targets != -100, student_hidden.dtype)
    kl_count = token_count(kl_count, valid, student_hidden.dtype)
    if chunk_elements is None:
        chunk_elements = chunk_elements_of(student_hidden.device.type)
    pair = None if teacher_hidden is None or teacher_head is None else (teacher_hidden, teacher_head)
    weights = TokenWeights(temperature, lm_weight / lm_count, kl_weight / kl_count)
    head = (student_head.weight, student_head.bias, student_head)
    total, lm, kl = FusedLMKL.apply(student_hidden, *head, pair, targets, valid, weights, chunk_elements)
    return total, lm / lm_count, kl / kl_count


# Elements of one [chunk, V] float32 tensor, of which two are alive at once. Each chunk reads and writes the head's
# whole gradient, which few large chunks pay for best.
CHUNK_ELEMENTS = {"cpu": 2**23}
CHUNK_ELEMENTS_ACCELERATOR = 2**27
# A chunk's elementwise part goes over blocks of its rows, of which a CPU wants two in its caches.
BLOCK_ELEMENTS = {"cpu": 2**20}
BLOCK_ELEMENTS_ACCELERATOR = 2**25
# From this temperature on no p_T rounds to 0 before a row of the teacher's logits spans 87 times as much.
RATIO_FROM = 4.0


def chunk_elements_of(device: str) -> int:
    """Elements of a chunk on devices of this type, unless given."""
    return CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS_ACCELERATOR)


def block_elements(device: str) -> int:
    """Elements of a block on devices of this type."""
    return BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS_ACCELERATOR)


@dataclass(frozen=True)
class TokenWeights:
    """Temperature, and the weight of one token in each sum."""

    temperature: float
    lm: Tensor | float
    kl: Tensor | float


class FusedLMKL(torch.autograd.Function):
    """Gradients are taken while a chunk's logits are at hand; backward only scales them, and can run once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher: tuple[Tensor, Head] | None,
        targets: Tensor,
        valid: Tensor,
        weights: TokenWeights,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The value, and all of the gradient that needs the inputs."""
        wide = wide_dtype(hidden.dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and need_bias else None
        sums = torch.zeros(2, dtype=wide, device=hidden.device)
        chunk = _even_chunk(len(hidden), max(1, chunk_elements // len(weight)))
        block = _even_chunk(chunk, max(1, block_elements(hidden.device.type) // len(weight)))
        spare = sums.new_empty(1 if teacher is None else 2, block, len(weight))
        need_grad = need_hidden or need_weight or need_bias
        with torch.autocast(hidden.device.type, enabled=False):
            student_head, head_rows = head.widened(), weight.detach().to(hidden.dtype)
            buffer = student_head.buffer(chunk, sums)
            if teacher is not None:
                teacher_hidden, teacher_head = teacher[0], teacher[1].widened()
                teacher_buffer = teacher_head.buffer(chunk, sums)
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                logits = student_head.logits(hidden[part], buffer)
                aims = None if teacher is None else teacher_head.logits(teacher_hidden[part], teacher_buffer)
                for first in range(0, len(logits), block):
                    rows = slice(first, first + block)
                    pair = logits[rows], None if aims is None else aims[rows]
                    sums += _block(head, *pair, spare, targets[part][rows], valid[part][rows], weights, need_grad)
                    del pair
                # Where products make their own buffers, the next chunk's are made when these are gone.
                del aims
                if need_grad:
                    if d_bias is not None:
                        d_bias += logits.sum(0)
                    grad = logits.to(hidden.dtype)
                    if d_hidden is not None:
                        torch.mm(grad, head_rows, out=d_hidden[part])
                    if d_weight is not None:
                        _add_product_(d_weight, grad.T, hidden[part])
                    del grad
                del logits
        narrow = zip((d_hidden, d_weight, d_bias), (hidden, weight, bias), strict=True)
        ctx.grads = [None if g is None or like is None else g.to(like.dtype) for g, like in narrow]
        lm, kl = sums.unbind()
        ctx.mark_non_differentiable(lm, kl)
        return weights.lm * lm + weights.kl * kl, lm, kl

    @staticmethod
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` kept; once."""
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError(
                "the fused LM and KL loss can be differentiated once; its gradients are already released"
            )
        return (*(None if grad is None else grad.mul_(total) for grad in grads), *(None,) * 6)


def _block(
    head: Head,
    student: Tensor,
    teacher: Tensor | None,
    spare: Tensor,
    targets: Tensor,
    valid: Tensor,
    weights: TokenWeights,
    need_grad: bool,
) -> Tensor:
    """Sums of LM and of T^2 KL over a block of rows, [2].

    `student` and `teacher` are [block, V] logits and are overwritten, the student's, if needed, with the weighted
    gradient in `h W^T + b`. `spare`, as many [.., V] again, is scratch.
    """
    counted = targets != -100
    labels = targets.clamp(min=0).unsqueeze(-1)
    uncapped = student / head.softcap if head.softcap is not None and need_grad else None
    p = torch.softmax(student, -1, out=spare[0, : len(student)])
    lm = torch.where(counted, (_log_normaliser(student, p) - student.gather(-1, labels)).squeeze(-1), 0.0).sum()
    lm_row = (weights.lm * counted).unsqueeze(-1).to(p.dtype)
    if teacher is None:
        kl = torch.zeros_like(lm)
        torch.mul(p, lm_row, out=student)
    else:
        kl_row = (weights.kl * weights.temperature * valid).unsqueeze(-1).to(p.dtype)
        way = _kl_by_ratio if weights.temperature >= RATIO_FROM else _kl_by_softmax
        row = way(p, student, teacher, spare[1, : len(teacher)], weights.temperature, lm_row, kl_row)
        kl = torch.where(valid, row, 0.0).sum() * weights.temperature**2
    if need_grad:
        student.scatter_add_(-1, labels, -lm_row)
        if uncapped is not None:
            student *= uncapped.square_().neg_().add_(1)
        if head.scale != 1.0:
            student *= head.scale
    return torch.stack([lm, kl]).to(p.dtype)


def _kl_by_softmax(
    p: Tensor, student: Tensor, teacher: Tensor, spare: Tensor, temperature: float, lm_row: Tensor, kl_row: Tensor
) -> Tensor:
    """KL of each row, and `lm_row p + kl_row (p_S - p_T)` in `student`; `p` is the student's softmax at T = 1.

    KL = log sum_v p_T exp(m - gap) with m = sum_v p_T gap: no difference of nearly equal numbers where it is small.
    """
    log_z = _log_normaliser(student, p)
    same = temperature == 1.0
    grad = p.mul_(lm_row + kl_row) if same else p.mul_(lm_row)
    if not same:
        student *= 1 / temperature
        teacher *= 1 / temperature
    p_teacher = torch.softmax(teacher, -1, out=spare)
    log_z_teacher = _log_normaliser(teacher, p_teacher)
    gap = teacher.sub_(student)
    expected_gap = torch.linalg.vecdot(p_teacher, gap)
    small = torch.linalg.vecdot(p_teacher, torch.sub(expected_gap.unsqueeze(-1), gap, out=gap).expm1_()).log1p()
    if not same:
        p_student = torch.softmax(student, -1, out=teacher)
        log_z = _log_normaliser(student, p_student)
        grad.addcmul_(p_student, kl_row)
    torch.addcmul(grad, p_teacher, kl_row, value=-1, out=student)
    plain = expected_gap + (log_z - log_z_teacher).squeeze(-1)
    return torch.where(small.isfinite(), small.to(plain.dtype), plain)  # where exp overflows the plain form is exact


def _kl_by_ratio(
    p: Tensor, student: Tensor, teacher: Tensor, spare: Tensor, temperature: float, lm_row: Tensor, kl_row: Tensor
) -> Tensor:
    """`_kl_by_softmax` in fewer passes over [block, V], for temperatures that keep every p_T above 0.

    The series e_v = expm1(m - gap_v) of the KL holds the student's softmax too: with s = sum_v p_T e,
    p_S = p_T (1 + e) / (1 + s), so p_S - p_T = p_T (e - s) / (1 + s), without a difference of nearly equal numbers.
    `shift` is 0 unless a student is so far off that exp would overflow.
    """
    grad = p.mul_(lm_row)
    teacher *= 1 / temperature
    p_teacher = torch.softmax(teacher, -1, out=spare)
    gap = torch.sub(teacher, student, alpha=1 / temperature, out=teacher)
    expected_gap = torch.linalg.vecdot(p_teacher, gap).unsqueeze(-1)
    shift = (expected_gap - gap.amin(-1, keepdim=True) - 80).clamp_(min=0)
    e = torch.sub(expected_gap - shift, gap, out=gap).expm1_()
    # 1 + s is at least 1 without a shift, and p_T exp(80) with one.
    s = torch.linalg.vecdot(p_teacher, e).unsqueeze(-1).clamp_(min=1e-4 - 1)
    e.sub_(s).mul_(kl_row / (1 + s))
    torch.addcmul(grad, p_teacher, e, out=student)
    return (shift + s.log1p()).squeeze(-1)


def _even_chunk(tokens: int, most: int) -> int:
    """Size of chunks of no more than `most` tokens, the last of which is not left with a few."""
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))


def _log_normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row, [n, 1], from its softmax: where both are largest, `log z = logit - log p`.

    One number a row, so in float64 where the device has it: the KL subtracts two of them that are nearly equal.
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.amax(-1, keepdim=True).to(exact) - probabilities.amax(-1, keepdim=True).to(exact).log()


def _add_product_(accumulator: Tensor, left: Tensor, right: Tensor) -> None:
    """accumulator += left @ right, where the accumulator may be wider than 16-bit factors.

    The product of 16-bit factors is a tensor of its own, so it is taken by blocks of the accumulator's rows.
    """
    if accumulator.dtype == left.dtype:
        accumulator.addmm_(left, right)
        return
    widens = widens_products(left.device.type)
    rows = max(1, block_elements(left.device.type) // accumulator.shape[-1])
    for part, factor in zip(accumulator.split(rows), left.split(rows), strict=True):
        part += torch.mm(factor, right, out_dtype=accumulator.dtype) if widens else factor @ right
