"""Mean squared error of one tap (LRC, arXiv 2505.12781, section 3.2).

From forward to backward one difference is kept, on the function's own context and not in autograd's saved tensors, so
that gradient checkpointing neither recomputes nor drops it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..precision import wide_dtype
from .tokens import token_count


def tap_mse(
    student: Tensor,
    target: Tensor,
    *,
    product: tuple[Tensor, Tensor] | None = None,
    through: tuple[Tensor, Tensor | None] | None = None,
    valid: Tensor | None = None,
    count: Tensor | float | None = None,
    scale: Tensor | None = None,
    overwrite: bool = True,
) -> Tensor:
    """Mean squared error of one tap over its counted tokens and all its channels.

        mse = scale / (count * w) * sum_i || s_i - t_i ||^2,   s = student or student W^T + b

    Backward keeps the difference alone, outside autograd's saved tensors, and can run once.

    Args:
        student: [n, w]; with `through = (W [w, w_in], b)` the [n, w_in] that this linear is applied to first.
        target: [n, w], no gradient. overwrite: Whether it may serve as the buffer of the difference.
        product: At a write, the `(output [n, d_T], Z [d_T, d_S])` that `target` is the product of (`write_target`):
            gradient flows into `Z` too.
        valid: [n] bool, or None for every token.
        count: Number of tokens to divide by: this call's own unless given.
        scale: Multiplies the result.

    Returns:
        The scaled MSE, differentiable in `student` and `Z`: a scalar, float32 (float64 for float64 input).
    """
    output, factor = (None, None) if product is None else product
    count = _count(student, valid, count)
    return TapMSE.apply(student, factor, target, output, through, valid, count, scale, overwrite)


@torch.no_grad()
def write_target(output: Tensor, factor: Tensor) -> Tensor:
    """The target `output Z` [n, d_S] at a write, of the teacher's output [n, d_T], without gradient."""
    with torch.autocast(output.device.type, enabled=False):
        return output.to(factor.dtype) @ factor


@torch.no_grad()
def mean_square(target: Tensor, valid: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`sum_i || t_i ||^2 / (count * w)` over the counted tokens of `target` [n, w]: what a tap may be divided by.

    A scalar without gradient, float32 (float64 for float64 input); `valid` and `count` as for `tap_mse`.
    """
    counted = target if valid is None else target.masked_fill(~valid.unsqueeze(-1), 0)
    square = torch.linalg.vector_norm(counted, dtype=wide_dtype(target.dtype)).square()
    return square / (_count(target, valid, count) * target.shape[-1])


def _count(rows: Tensor, valid: Tensor | None, count: Tensor | float | None) -> Tensor | float:
    return len(rows) if count is None and valid is None else token_count(count, valid, rows.dtype)


class TapMSE(torch.autograd.Function):
    """Value and gradient of `tap_mse`.

    From forward to backward it keeps the difference alone: the gradient in a write's Z needs the teacher's output too,
    so it is taken at once, [d_T, d_S], and the output is let go. Backward can run once, since it scales what is kept
    in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        factor: Tensor | None,
        target: Tensor,
        teacher_output: Tensor | None,
        through: tuple[Tensor, Tensor | None] | None,
        valid: Tensor | None,
        count: Tensor | float,
        scale: Tensor | None,
        overwrite: bool,
    ) -> Tensor:
        """The value, and all of the gradient that needs the inputs."""
        with torch.autocast(student.device.type, enabled=False):
            output = student if through is None else torch.nn.functional.linear(student, *through)
            elements = count * output.shape[-1]
            in_place = overwrite and target.data_ptr() != output.data_ptr()
            difference = torch.sub(output, target, out=target) if in_place else output - target
            if valid is not None:
                difference.masked_fill_(~valid.unsqueeze(-1), 0)
            mse = torch.linalg.vector_norm(difference, dtype=wide_dtype(student.dtype)).square() / elements
            if scale is not None:
                mse = mse * scale
            ctx.d_factor = None
            if teacher_output is not None and ctx.needs_input_grad[1]:
                ctx.d_factor = teacher_output.to(difference.dtype).T @ difference
            if through is not None:  # at once: the weight may be there for a moment only
                difference = difference @ through[0].to(difference.dtype)
        ctx.difference = difference if ctx.needs_input_grad[0] else None
        ctx.factor_dtype = None if factor is None else factor.dtype
        ctx.coefficient = (2 / elements) * (1.0 if scale is None else scale)
        return mse

    @staticmethod
    def backward(ctx: Any, mse: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` kept; once."""
        difference, d_factor = ctx.difference, ctx.d_factor
        if difference is None and d_factor is None:
            raise RuntimeError("the loss of a tap can be differentiated once; its gradient is already released")
        ctx.difference = ctx.d_factor = None
        coefficient = ctx.coefficient * mse
        if difference is not None:
            difference.mul_(coefficient.to(difference.dtype))
        if d_factor is not None:
            d_factor = d_factor.mul_(-coefficient.to(d_factor.dtype)).to(ctx.factor_dtype)
        return difference, d_factor, *(None,) * 7
