"""Accelerators as their vendors describe them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One device, by its vendor's data sheet: dense peak FLOP/s by dtype, memory in bytes, board power in watts."""

    name: str
    bfloat16: float
    float32: float
    memory: float
    watts: float


# NVIDIA's and AMD's data sheets; dense figures, without sparsity.
ACCELERATORS = {
    device.name: device
    for device in (
        Accelerator("a100-40gb", 312e12, 19.5e12, 40e9, 400),
        Accelerator("a100-80gb", 312e12, 19.5e12, 80e9, 400),
        Accelerator("h100-80gb", 989e12, 67e12, 80e9, 700),
        Accelerator("h200-141gb", 989e12, 67e12, 141e9, 700),
        Accelerator("l40s-48gb", 362e12, 91.6e12, 48e9, 350),
        Accelerator("rtx4090-24gb", 165.2e12, 82.6e12, 24e9, 450),
        Accelerator("mi300x-192gb", 1307e12, 163.4e12, 192e9, 750),
    )
}
