"""Tensors of which several processes hold a part each: PyTorch's DTensors, split along their first axis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor


def shard(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """This process's rows of a tensor that every process holds whole; nothing is sent. One that is sharded stays."""
    if isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered if it is sharded; then every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its part of a sharded one, else all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows that are this process's, of a sharded tensor or of one that every process holds whole (a view)."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    parts, rank = tensor.chunk(mesh.size()), mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


def join(local: Tensor, mesh: DeviceMesh, shape: tuple[int, ...], placement: Placement | None = None) -> DTensor:
    """The tensor of this shape of which every process holds its rows, or what `placement` says."""
    stride = torch.empty(shape, device="meta").stride()
    local = local.contiguous()
    return DTensor.from_local(
        local, mesh, [placement or Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
    )
