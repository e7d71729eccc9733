"""The streams of all batches, kept in temporary files: memory holds one batch's, whatever the number of tokens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError


class Spool:
    """One stream for each batch, [batch, length, d], in a file without a name that is gone with this object.

    Iterating gives `(ids, stream)` batch by batch, on the device of the ids.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches
        self._files: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for ids, stream in zip(self._batches, self._files, strict=True):
            yield ids, stream.to(ids.device, copy=True)

    def fill(self, make: Callable[[Tensor], Tensor]) -> None:
        """Let each batch's stream be `make(ids)`."""
        for index, ids in enumerate(self._batches):
            stream = make(ids)
            if index == len(self._files):
                self._files.append(_new_file(stream))
            self._files[index].copy_(stream)

    def advance(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Let each batch's stream become `step(ids, stream)`."""
        for index, (ids, stream) in enumerate(self):
            self._files[index].copy_(step(ids, stream))


@dataclass(frozen=True)
class Streams:
    """Both models' streams at the same block. Iterating gives `(ids, teacher, student)` batch by batch."""

    teacher: Spool
    student: Spool

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for (ids, teacher), (_, student) in zip(self.teacher, self.student, strict=True):
            yield ids, teacher, student


def check_space(needed: int) -> None:
    """Refuse streams of `needed` bytes that the folder of temporary files has no room for.

    Raises:
        InputError: There is too little space.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"calibration: its streams need {needed / 1e9:,.1f} GB in `{folder}`, which has {free / 1e9:,.1f} GB free; "
            "set TMPDIR to a folder with more space, or calibrate on fewer tokens"
        )


def _new_file(like: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile() as file:
        flat = torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype)
    return flat.view(like.shape)
