"""In what precision sums and master weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


@contextmanager
def tf32_products(where: bool) -> Iterator[None]:
    """TF32 for the float32 products inside, where asked for: ten mantissa bits in, float32 accumulation."""
    if not where:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
