"""Language-model cross-entropy and KL to the teacher: lean in memory, exact in float32.

LRC, arXiv 2505.12781, section 3.2:

    L = lm_weight * LM + kl_weight * T^2 * mean_token KL(p_T || p_S at temperature T) + clone_weight * sum_taps MSE

Axes: n tokens, V vocabulary, d_T and d_S the residual widths. `FusedLMKL` takes its gradients in the forward pass,
while a chunk's logits are at hand, and keeps them on its own context and not in autograd's saved tensors, so that
gradient checkpointing neither recomputes nor drops them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..precision import wide_dtype
from .head import Head, widens_products
from .kl import RowWeights, kl_of_rows, log_normaliser
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
    batch = Batch(
        student_head,
        None if teacher_hidden is None or teacher_head is None else (teacher_hidden, teacher_head),
        targets,
        valid,
        TokenWeights(temperature, lm_weight / lm_count, kl_weight / kl_count),
        chunk_elements,
    )
    total, lm, kl = FusedLMKL.apply(student_hidden, student_head.weight, student_head.bias, batch)
    return total, lm / lm_count, kl / kl_count


# Elements of one [chunk, V] float32 tensor, of which two are alive at once. Each chunk reads and writes the head's
# whole gradient, which few large chunks pay for best.
CHUNK_ELEMENTS = {"cpu": 2**23}
CHUNK_ELEMENTS_ACCELERATOR = 2**27
# A chunk's elementwise part goes over blocks of its rows, of which a CPU wants two in its caches.
BLOCK_ELEMENTS = {"cpu": 2**20}
BLOCK_ELEMENTS_ACCELERATOR = 2**25


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


@dataclass(frozen=True)
class Batch:
    """What one call of the loss is given beside the tensors that gradients flow to; see `lm_kl_loss`."""

    head: Head
    teacher: tuple[Tensor, Head] | None
    targets: Tensor
    valid: Tensor
    weights: TokenWeights
    chunk_elements: int


class FusedLMKL(torch.autograd.Function):
    """Gradients are taken while a chunk's logits are at hand; backward only scales them, and can run once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The value, and all of the gradient that needs the inputs."""
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        sums = torch.zeros(2, dtype=wide_dtype(hidden.dtype), device=hidden.device)
        chunk = _even_chunk(len(hidden), max(1, batch.chunk_elements // len(weight)))
        block = _even_chunk(chunk, max(1, block_elements(hidden.device.type) // len(weight)))
        scratch = sums.new_empty(1 if batch.teacher is None else 2, block, len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            head = batch.head.widened()
            buffer = head.buffer(chunk, sums)
            if batch.teacher is not None:
                teacher_hidden, teacher_head = batch.teacher[0], batch.teacher[1].widened()
                teacher_buffer = teacher_head.buffer(chunk, sums)
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                logits = head.logits(hidden[part], buffer)
                aims = None if batch.teacher is None else teacher_head.logits(teacher_hidden[part], teacher_buffer)
                for first in range(0, len(logits), block):
                    rows = slice(first, first + block)
                    pair = logits[rows], None if aims is None else aims[rows]
                    labels, valid = batch.targets[part][rows], batch.valid[part][rows]
                    sums += _block(batch, *pair, scratch, labels, valid, gradients.needed)
                    del pair
                # Where products make their own buffers, the next chunk's are made when these are gone.
                del aims
                gradients.add(part, logits)
                del logits
        ctx.grads = gradients.narrowed()
        lm, kl = sums.unbind()
        ctx.mark_non_differentiable(lm, kl)
        return batch.weights.lm * lm + batch.weights.kl * kl, lm, kl

    @staticmethod
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` kept; once."""
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError(
                "the fused LM and KL loss can be differentiated once; its gradients are already released"
            )
        return (*(None if grad is None else grad.mul_(total) for grad in grads), None)


class _Gradients:
    """The gradients in `h W^T + b`'s input `h` [n, d], weight `W` [V, d] and bias `b` [V], those that are needed."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]) -> None:
        self._inputs, wide = (hidden, weight, bias), wide_dtype(hidden.dtype)
        self._hidden = torch.empty_like(hidden) if needs[0] else None
        self._weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        self._bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        self._rows = weight.detach().to(hidden.dtype)
        self.needed = any(needs)

    def add(self, part: slice, in_logits: Tensor) -> None:
        """Take in a chunk of the gradient in the head's output, [chunk, V]."""
        hidden = self._inputs[0]
        if not self.needed:
            return
        if self._bias is not None:
            self._bias += in_logits.sum(0)
        in_logits = in_logits.to(hidden.dtype)
        if self._hidden is not None:
            torch.mm(in_logits, self._rows, out=self._hidden[part])
        if self._weight is not None:
            _add_product_(self._weight, in_logits.T, hidden[part])

    def narrowed(self) -> list[Tensor | None]:
        """The gradients in the dtypes of what they belong to."""
        pairs = zip((self._hidden, self._weight, self._bias), self._inputs, strict=True)
        return [None if grad is None or of is None else grad.to(of.dtype) for grad, of in pairs]


def _block(
    batch: Batch,
    student: Tensor,
    teacher: Tensor | None,
    scratch: Tensor,
    targets: Tensor,
    valid: Tensor,
    need_grad: bool,
) -> Tensor:
    """Sums of LM and of T^2 KL over a block of rows, [2].

    `student` and `teacher` are [block, V] logits and are overwritten, the student's, if needed, with the weighted
    gradient in `h W^T + b`. `scratch` is as many [.., V] again.
    """
    head, weights = batch.head, batch.weights
    counted = targets != -100
    labels = targets.clamp(min=0).unsqueeze(-1)
    uncapped = student / head.softcap if head.softcap is not None and need_grad else None
    p = torch.softmax(student, -1, out=scratch[0, : len(student)])
    lm = torch.where(counted, (log_normaliser(student, p) - student.gather(-1, labels)).squeeze(-1), 0.0).sum()
    lm_row = (weights.lm * counted).unsqueeze(-1).to(p.dtype)
    if teacher is None:
        kl = torch.zeros_like(lm)
        gradient = torch.mul(p, lm_row, out=student)
    else:
        kl_row = (weights.kl * weights.temperature * valid).unsqueeze(-1).to(p.dtype)
        of_rows = RowWeights(weights.temperature, lm_row, kl_row)
        rows, gradient = kl_of_rows(p, student, teacher, scratch[1, : len(teacher)], of_rows)
        kl = torch.where(valid, rows, 0.0).sum() * weights.temperature**2
    if need_grad:
        gradient.scatter_add_(-1, labels, -lm_row)
        if uncapped is not None:
            gradient *= uncapped.square_().neg_().add_(1)
        if head.scale != 1.0:
            gradient *= head.scale
    return torch.stack([lm, kl]).to(p.dtype)


def _even_chunk(tokens: int, most: int) -> int:
    """Size of chunks of no more than `most` tokens, the last of which is not left with a few."""
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))


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
