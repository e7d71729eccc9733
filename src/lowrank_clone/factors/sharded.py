"""Push and pull where several processes hold a part of every factor, leaf and basis.

Tensors are PyTorch's DTensors, split along their first axis over a mesh of one dimension. With r one process's rows:

    read    W[r] = B[r] Z               Z is gathered
            Z.grad = sum B[r]^T G[r]    summed and scattered
    write   W = sum Z[r]^T B[r]         summed and scattered
            Z.grad[r] = B[r] G^T        the leaf's gradient G is gathered

so no process ever needs another's part of a basis of `projected`, and beside the parts one matrix is whole at a time.
The reflections of `core` are kept in parts too; a matrix's own are gathered when it is its turn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

from ..shards import join, own_rows, shard, whole
from .bases import Core, LinearMap, Projected, Rotation


class ShardedProjected(LinearMap):
    """`Projected` on sharded tensors.

    Args:
        basis: The teacher's tensor, sharded as the leaf's engine shards it or whole in every process.
        axis: As for `Projected`.
        mesh: The processes.
    """

    def __init__(self, basis: Tensor, axis: int, mesh: DeviceMesh) -> None:
        self.basis, self.axis, self.mesh = basis, axis, mesh

    @property
    def _is_first(self) -> bool:
        """Whether the residual axis is the one that is split."""
        return self.axis == -self.basis.ndim

    def _local(self) -> Projected:
        return Projected(own_rows(self.basis.detach(), self.mesh), self.axis)

    def generate(self, factor: Tensor) -> Tensor:
        """See `LinearMap.generate`."""
        assert isinstance(factor, DTensor)
        shape = list(self.basis.shape)
        shape[self.axis] = factor.shape[1]
        if not self._is_first:
            return join(self._local().generate(factor.full_tensor()), self.mesh, tuple(shape))
        part = join(self._local().generate(factor.to_local()), self.mesh, tuple(shape), Partial())
        return part.redistribute(placements=[Shard(0)])

    def adjoint(self, grad: Tensor) -> Tensor:
        """See `LinearMap.adjoint`."""
        assert isinstance(grad, DTensor)
        shape = (self.basis.shape[self.axis], grad.shape[self.axis])
        local = self._local()
        if self._is_first:
            rows = local.basis.shape[self.axis]
            whole_grad = grad.full_tensor()
            own = local.adjoint(whole_grad) if rows else whole_grad.new_zeros(0, shape[1])
            return join(own, self.mesh, shape)
        own = grad.to_local()
        own = local.adjoint(own) if own.numel() else own.new_zeros(shape)
        return join(own, self.mesh, shape, Partial()).redistribute(placements=[Shard(0)])

    def inverse(self, weight: Tensor) -> Tensor:
        """There is none."""
        return self._local().inverse(weight)

    def follow(self, move: Callable[[Tensor], Tensor], successor: Callable[[Tensor], Tensor]) -> None:
        """The basis is the teacher's."""
        self.basis = successor(self.basis)


class ShardedCore(Rotation):
    """`Core` on sharded tensors.

    Experts' bases are split by expert and never leave their process. A matrix's reflections act on whole columns, so
    its rotation is split by the other axis; a read's columns go there and back.

    Args:
        weight: The teacher's tensor, sharded or whole in every process; a matrix is gathered once, for its own QR.
        axis, dtype: As for `Core`.
        mesh: The processes.
    """

    def __init__(self, weight: Tensor, axis: int, dtype: torch.dtype, mesh: DeviceMesh) -> None:
        self.axis, self.mesh = axis, mesh
        self._by_expert = weight.ndim > 2
        own = own_rows(weight.detach(), mesh) if self._by_expert else whole(weight.detach())
        core = Core(own, axis, dtype)
        self.reflections = core.reflections if self._by_expert else shard(core.reflections, mesh)
        self.scales = core.scales

    def _rotate(self, tensor: Tensor, transpose: bool) -> Tensor:
        assert isinstance(tensor, DTensor)
        place = Shard(1) if not self._by_expert and self.axis == -1 else Shard(0)
        columns = tensor.redistribute(placements=[place]).to_local().movedim(self.axis, -1).contiguous()
        if columns.numel():
            columns = torch.ormqr(whole(self.reflections), self.scales, columns, transpose=transpose)
        elif isinstance(self.reflections, DTensor):
            whole(self.reflections)  # the others gather it
        rotated = join(columns.movedim(-1, self.axis), self.mesh, tuple(tensor.shape), place)
        return rotated.redistribute(placements=[Shard(0)])


def sharded(basis: LinearMap, mesh: DeviceMesh, weight: Tensor | None) -> LinearMap:
    """The same map on sharded tensors; `Identity` is so as it is.

    Args:
        weight: The teacher's tensor, from which `Core` is made anew.
    """
    if isinstance(basis, Projected):
        return ShardedProjected(basis.basis, basis.axis, mesh)
    if isinstance(basis, Core):
        assert weight is not None
        return ShardedCore(weight, basis.axis, basis.scales.dtype, mesh)
    return basis
