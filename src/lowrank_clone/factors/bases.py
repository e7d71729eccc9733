"""Frozen linear maps from a factor to a deployed tensor, one class for each parameterisation (see `factors.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..precision import tf32_products


class LinearMap(ABC):
    """A frozen linear map from a factor to a deployed tensor."""

    @abstractmethod
    def generate(self, factor: Tensor) -> Tensor:
        """The deployed tensor, in the factor's dtype."""

    @abstractmethod
    def adjoint(self, grad: Tensor) -> Tensor:
        """The factor's gradient for the gradient `grad` of the deployed tensor; both in the factor's dtype."""

    def write(self, factor: Tensor, leaf: Tensor) -> None:
        """`leaf <- generate(factor)`."""
        leaf.copy_(self.generate(factor))

    @abstractmethod
    def inverse(self, weight: Tensor) -> Tensor:
        """The factor that generates the deployed tensor `weight`; a map that can't reach every tensor has none.

        Raises:
            ValueError: There is none.
        """

    @abstractmethod
    def follow(self, move: Callable[[Tensor], Tensor], successor: Callable[[Tensor], Tensor]) -> None:
        """Go where the models went: `move` what this map owns, take the `successor` of a parameter of the teacher."""


class Identity(LinearMap):
    """`W = Z`: the deployed tensor itself is trained."""

    def generate(self, factor: Tensor) -> Tensor:
        """See `LinearMap.generate`."""
        return factor

    def adjoint(self, grad: Tensor) -> Tensor:
        """See `LinearMap.adjoint`."""
        return grad

    def inverse(self, weight: Tensor) -> Tensor:
        """The tensor itself."""
        return weight

    def follow(self, move: Callable[[Tensor], Tensor], successor: Callable[[Tensor], Tensor]) -> None:
        """It holds nothing."""


class Projected(LinearMap):
    """`W = B x_axis Z`: the residual axis of the teacher's tensor, contracted with `Z: [d_T, d_S]`.

    `axis` counts from the end. A read [out, d_T] gives `B Z`, a write [d_T, in] gives `Z^T B`, a write's bias [d_T]
    gives `Z^T b`, expert tensors [expert, .., ..] the same for every expert.
    """

    def __init__(self, basis: Tensor, axis: int) -> None:
        self.basis = basis
        self.axis = axis

    def generate(self, factor: Tensor) -> Tensor:
        """See `LinearMap.generate`."""
        rows = self.basis.detach().to(factor.dtype).movedim(self.axis, -1)  # [..., d_T]
        return (rows @ factor).movedim(-1, self.axis)

    def write(self, factor: Tensor, leaf: Tensor) -> None:
        """See `LinearMap.write`; without a copy where the product can go straight into the leaf."""
        basis = self.basis.detach()
        if basis.ndim == 2 and basis.dtype == factor.dtype == leaf.dtype and type(leaf) is nn.Parameter:
            left, right = (basis, factor) if self.axis == -1 else (factor.T, basis)
            torch.mm(left, right, out=leaf)
        else:
            super().write(factor, leaf)

    def adjoint(self, grad: Tensor) -> Tensor:
        """See `LinearMap.adjoint`."""
        rows = self.basis.detach().to(grad.dtype).movedim(self.axis, -1)
        columns = grad.movedim(self.axis, -1)  # [..., d_S]
        return rows.reshape(-1, rows.shape[-1]).T @ columns.reshape(-1, columns.shape[-1])

    def inverse(self, weight: Tensor) -> Tensor:
        """There is none."""
        raise ValueError("a projected matrix reaches a part of all tensors only")

    def follow(self, move: Callable[[Tensor], Tensor], successor: Callable[[Tensor], Tensor]) -> None:
        """The basis is the teacher's."""
        self.basis = successor(self.basis)


class Rotation(LinearMap):
    """A square orthonormal basis along an inner axis, kept as the Householder reflections whose product it is."""

    axis: int
    reflections: Tensor
    scales: Tensor

    def generate(self, factor: Tensor) -> Tensor:
        """See `LinearMap.generate`."""
        return self._rotate(factor, transpose=False)

    def adjoint(self, grad: Tensor) -> Tensor:
        """See `LinearMap.adjoint`."""
        return self._rotate(grad, transpose=True)

    def inverse(self, weight: Tensor) -> Tensor:
        """`Q^T W`, as Q is orthonormal."""
        return self.adjoint(weight)

    def follow(self, move: Callable[[Tensor], Tensor], successor: Callable[[Tensor], Tensor]) -> None:
        """The reflections are its own."""
        self.reflections, self.scales = move(self.reflections), move(self.scales)

    @abstractmethod
    def _rotate(self, tensor: Tensor, transpose: bool) -> Tensor:
        """The basis, or its transpose, along the inner axis of a tensor."""


class Core(Rotation):
    """`W = [T U] Z`: `T` an orthonormal basis of the column space of the teacher's tensor, `U` of its complement.

    Z has the shape of W; along the inner axis its first entries are coefficients of T, which the projected weight has
    all of, and the rest those of U, zero at that start (CORE-LRC, arXiv 2609.02006). The square basis of the inner
    width is never formed: it is the product of the Householder reflections of a QR decomposition, as large as the
    teacher's tensor.
    """

    def __init__(self, weight: Tensor, axis: int, dtype: torch.dtype) -> None:
        self.axis = axis
        self.reflections, self.scales = torch.geqrf(weight.detach().movedim(axis, -1).to(dtype))
        self.reflections = self.reflections[..., : self.scales.shape[-1]].contiguous()

    def _rotate(self, tensor: Tensor, transpose: bool) -> Tensor:
        columns = tensor.movedim(self.axis, -1).contiguous()
        return torch.ormqr(self.reflections, self.scales, columns, transpose=transpose).movedim(-1, self.axis)


def matmul_precision(leaf: Tensor) -> AbstractContextManager[None]:
    """TF32 for the products of a 16-bit leaf on CUDA, whose seven mantissa bits take no more."""
    return tf32_products(leaf.is_cuda and leaf.dtype in (torch.bfloat16, torch.float16))
