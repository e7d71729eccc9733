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
    count = len(student) if count is None and valid is None else token_count(count, valid, student.dtype)
    return TapMSE.apply(student, target, factor, through, valid, count, scale, own_scale, overwrite, with_square)


class TapMSE(torch.autograd.Function):
    """Value and gradient of `losses.tap_mse`.

    From forward to backward it keeps the difference alone: the gradient in a write's Z needs the target too, so it is
    taken at once, [d_T, d_S], and the target is let go. Backward can run once, since it scales what is kept in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        target: Tensor,
        factor: Tensor | None,
        through: tuple[Tensor, Tensor | None] | None,
        valid: Tensor | None,
        count: Tensor | float,
        scale: Tensor | None,
        own_scale: bool,
        overwrite: bool,
        with_square: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The value, and all of the gradient that needs the inputs."""
        wide = wide_dtype(student.dtype)
        with torch.autocast(student.device.type, enabled=False):
            output = student if through is None else torch.nn.functional.linear(student, *through)
            aim = target if factor is None else target.to(factor.dtype) @ factor
            aim = aim.to(output.dtype)
            ignored = None if valid is None else ~valid.unsqueeze(-1)
            elements = count * output.shape[-1]
            square = None
            if own_scale or with_square:
                counted = aim if ignored is None else aim.masked_fill(ignored, 0)
                square = torch.linalg.vector_norm(counted, dtype=wide).square() / elements
            # A product is ours to overwrite; a target where the caller says that nobody reads it any more.
            ours = aim is not target or (overwrite and aim.data_ptr() != output.data_ptr())
            difference = torch.sub(output, aim, out=aim) if ours else output - aim
            if ignored is not None:
                difference.masked_fill_(ignored, 0)
            if own_scale and square is not None:
                scale = 1 / square.clamp(min=torch.finfo(wide).tiny)
            mse = torch.linalg.vector_norm(difference, dtype=wide).square() / elements
            if scale is not None:
                mse = mse * scale
            ctx.d_factor = None
            if factor is not None and ctx.needs_input_grad[2]:
                ctx.d_factor = target.to(difference.dtype).T @ difference
        ctx.difference = difference if ctx.needs_input_grad[0] else None
        ctx.through = through
        ctx.factor_dtype = None if factor is None else factor.dtype
        ctx.coefficient = (2 / elements) * (1.0 if scale is None else scale)
        if square is not None:
            ctx.mark_non_differentiable(square)
        return mse, square

    @staticmethod
    def backward(ctx: Any, mse: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` kept; once."""
        difference, d_factor = ctx.difference, ctx.d_factor
        if difference is None and d_factor is None:
            raise RuntimeError("the loss of a tap can be differentiated once; its gradient is already released")
        ctx.difference = ctx.d_factor = None
        coefficient = ctx.coefficient * mse
        if difference is not None:
            difference.mul_(coefficient.to(difference.dtype))
            if ctx.through is not None:
                difference = difference @ ctx.through[0].to(difference.dtype)
        if d_factor is not None:
            d_factor = d_factor.mul_(-coefficient.to(d_factor.dtype)).to(ctx.factor_dtype)
        return difference, None, d_factor, *(None,) * 7
