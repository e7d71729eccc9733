"""The objective's terms as pure functions (LRC, arXiv 2505.12781, section 3.2).

    L = lm_weight * LM + kl_weight * T^2 * mean_token KL(p_T || p_S at temperature T) + clone_weight * sum_taps MSE

Axes: n tokens, V vocabulary, d_T and d_S the residual widths, w the width of a tap. `fused.py` holds their arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fused import FusedLMKL, Head, TapMSE, TokenWeights, chunk_elements_of

__all__ = ["Head", "lm_kl_loss", "tap_mse"]


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
    lm_count = _count(lm_count, targets != -100, student_hidden.dtype)
    kl_count = _count(kl_count, valid, student_hidden.dtype)
    if chunk_elements is None:
        chunk_elements = chunk_elements_of(student_hidden.device.type)
    pair = None if teacher_hidden is None or teacher_head is None else (teacher_hidden, teacher_head)
    weights = TokenWeights(temperature, lm_weight / lm_count, kl_weight / kl_count)
    head = (student_head.weight, student_head.bias, student_head)
    total, lm, kl = FusedLMKL.apply(student_hidden, *head, pair, targets, valid, weights, chunk_elements)
    return total, lm / lm_count, kl / kl_count


def tap_mse(
    student: Tensor,
    target: Tensor,
    *,
    factor: Tensor | None = None,
    through: tuple[Tensor, Tensor | None] | None = None,
    valid: Tensor | None = None,
    count: Tensor | float | None = None,
    scale: Tensor | None = None,
    own_scale: bool = False,
    overwrite: bool = True,
    with_square: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Mean squared error of one tap over its counted tokens and all its channels, and the target's mean square.

        mse = scale / (count * w) * sum_i || s_i - t_i ||^2,   s = student or student W^T + b,   t = target or target Z

    Backward keeps the difference alone, outside autograd's saved tensors, and can run once.

    Args:
        student: [n, w]; with `through = (W [w, w_in], b)` the [n, w_in] that this linear is applied to first.
        target: [n, w], no gradient. overwrite: Whether it may serve as the buffer of the difference.
        factor: A write's `Z` [d_T, d_S]: the target is `target Z`, and gradient flows into `Z` too.
        valid: [n] bool, or None for every token.
        count: Number of tokens to divide by: this call's own unless given.
        scale: Multiplies the result; or `own_scale`: 1 over this call's own target mean square, without gradient.
        with_square: Whether to take the target's mean square.

    Returns:
        The scaled MSE, differentiable in `student` and `factor`, and the target's mean square over the same tokens
        (times `n / count`), without gradient, or None. Scalars, float32 (float64 for float64 input).
    """
    count = len(student) if count is None and valid is None else _count(count, valid, student.dtype)
    return TapMSE.apply(student, target, factor, through, valid, count, scale, own_scale, overwrite, with_square)


def _count(count: Tensor | float | None, counted: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`count`, or how many are `counted`, at least 1, in a dtype that does not round the terms divided by it."""
    if count is None:
        assert counted is not None
        count = counted.sum()
    return torch.as_tensor(count, dtype=torch.float64 if dtype == torch.float64 else torch.float32).clamp(min=1)
