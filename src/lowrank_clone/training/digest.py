"""A digest of a model's weights that covers every number, computed where the weights are."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..shards import own_part

# Numbers that are summed at a time: their int64 copies stay in a core's cache.
CHUNK = 1 << 16
_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], str]] = WeakKeyDictionary()


@torch.no_grad()
def digest_of(model: nn.Module) -> str:
    """Digest of every parameter and saved buffer: names, shapes and all numbers, in order.

    Each chunk of a tensor is summed in 64-bit integers, every number's bits times an odd weight of its place: one
    number that differs changes the sum for certain, numbers that change places do but for a chance of 2^-60 or so.
    bfloat16 and float16 numbers count as the float32 numbers that they are, so the same weights in another dtype have
    the same digest. The sums leave the device together; the digest is kept until a tensor is written to.
    """
    tensors = model.state_dict(keep_vars=True)
    state = _state(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != state:
        weights = _weights()
        sums = [_sums(tensors[name], weights) for name in sorted(tensors)]
        digest = hashlib.sha256(torch.cat(sums).cpu().numpy().tobytes() if sums else b"")
        for name in sorted(tensors):
            digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        known = _KNOWN[model] = (state, digest.hexdigest())
    return known[1]


def note_digest(model: nn.Module, digest: str) -> None:
    """Say what the digest of a model is whose tensors this process holds in parts only."""
    _KNOWN[model] = (_state(model), digest)


def _state(model: nn.Module) -> tuple[tuple[int, int], ...]:
    tensors = [own_part(tensor.detach()) for tensor in model.state_dict(keep_vars=True).values()]
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def _sums(tensor: Tensor, weights: Tensor) -> Tensor:
    """[chunks] int64."""
    flat, weights = tensor.detach().reshape(-1), weights.to(tensor.device)
    parts = [(_bits(part) * weights[: len(part)]).sum() for part in flat.split(CHUNK)]
    return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.int64, device=flat.device)


def _weights() -> Tensor:
    """[CHUNK] odd int64 numbers, the same in every process."""
    return torch.randint(-(2**62), 2**62, (CHUNK,), generator=torch.Generator().manual_seed(0)) * 2 + 1


def _bits(numbers: Tensor) -> Tensor:
    """The numbers' bits, int64."""
    if numbers.dtype == torch.float64:
        return numbers.view(torch.int64)
    if numbers.is_floating_point():
        return numbers.float().view(torch.int32).to(torch.int64)
    return numbers.to(torch.int64)
