"""The step of Muon, of whole matrices and of those that are sharded over processes.

    buffer <- momentum buffer + (1 - momentum) grad
    update <- (1 - momentum) grad + momentum buffer
    matrix <- (1 - lr weight_decay) matrix - lr 0.2 sqrt(max(rows, columns)) orthogonal(update)

`orthogonal` is five Newton-Schulz steps with the usual coefficients (Muon, kellerjordan.github.io/posts/muon), which
bring singular values near 1. `torch.optim.Muon` takes them in bfloat16, whose rounding makes factors of equal runs
differ by 2e-3 after 20 steps, whatever their number of processes; here they are float32, TF32 products on CUDA.

No part of a matrix tells what is orthogonal to the whole, so the momentum of a sharded one, which is kept in parts, is
gathered when it is its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..precision import tf32_products
from ..shards import shard, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


@torch.no_grad()
def step_muon(
    matrices: Iterable[nn.Parameter],
    state: MutableMapping[Any, Any],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """One step.

    Args:
        matrices: [rows, columns], plain or DTensors; those without a gradient are left alone.
        state: The optimiser's, by parameter: `momentum_buffer`, in parts where the matrix is.
    """
    for matrix in matrices:
        grad = matrix.grad
        if grad is None:
            continue
        own = state[matrix]
        if "momentum_buffer" not in own:
            own["momentum_buffer"] = torch.zeros_like(grad)
        own["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = orthogonal(whole(grad.lerp(own["momentum_buffer"], momentum)))
        update.mul_(-lr * 0.2 * max(matrix.shape) ** 0.5)
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(shard(update, matrix.device_mesh) if isinstance(matrix, DTensor) else update)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1 (0.7 to 1.2), [rows, columns] in its own dtype."""
    a, b, c = COEFFICIENTS
    wide = len(matrix) <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    with tf32_products(matrix.is_cuda):
        for _ in range(STEPS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T.contiguous()
