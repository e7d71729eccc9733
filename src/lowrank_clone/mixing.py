"""64 bits scrambled into 64 others, in numpy and in torch alike: what orders and digests of rows are made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ODD = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """splitmix64's output function, a bijection of uint64; the same on every machine and in every release.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = numbers.astype(np.uint64) + np.uint64(_ODD)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray(x ^ (x >> np.uint64(31)))


def keyed(numbers: np.ndarray, *key: int) -> np.ndarray:
    """`scrambled`, in another way for every key of whole numbers; `[n]` uint64."""
    seed = np.zeros(1, np.uint64)
    for part in key:
        seed = scrambled(seed ^ scrambled(np.array([part % 2**64], np.uint64)))
    return scrambled(numbers.astype(np.uint64) ^ seed)


def shuffled(rows: int, *key: int) -> np.ndarray:
    """`[rows]` int64: the numbers 0 .. rows - 1 in an order that is the key's, on every machine."""
    return np.argsort(keyed(np.arange(rows, dtype=np.uint64), *key), kind="stable")


def scrambled_tensor(numbers: Tensor) -> Tensor:
    """`scrambled` for int64, which stand for the uint64 of the same bits, on the tensor's own device."""
    x = numbers.long() + _signed(_ODD)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifted to the right with zeros from the left."""
    return torch.bitwise_right_shift(x, bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
