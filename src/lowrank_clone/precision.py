"""In what precision sums and master weights are kept."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
