"""Effective rank of the residual stream, layer by layer (RED, arXiv 2605.29327)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..hooks import floating, hooked
from ..plan.layers import model_blocks
from ..plan.roles import Plan
from ..precision import wide_dtype
from .passes import forward, token_batches


@dataclass(frozen=True)
class StreamRank:
    """Effective ranks of the residual stream after `layer` layers (0: what the first layer is given)."""

    layer: int
    teacher: float
    student: float


@torch.no_grad()
def stream_ranks(
    teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, blocks: Sequence[Any], progress: bool = False
) -> tuple[StreamRank, ...]:
    """Effective rank of the residual stream before the first layer and after each one, in both models.

    Each rank is at most min(n - 1, d).
    """
    layers = model_blocks(student)

    def ranks(model: PreTrainedModel, width: int, name: str) -> list[float]:
        label = f"measuring the {name}'s ranks"
        return _stream_ranks(model, layers, width, partial(token_batches, blocks, model.device, label, progress))

    both = zip(
        ranks(teacher, plan.teacher_width, "teacher"), ranks(student, plan.student_width, "student"), strict=True
    )
    return tuple(StreamRank(layer, *pair) for layer, pair in enumerate(both))


@torch.no_grad()
def rows_ranks(
    teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, texts: Sequence[Tensor]
) -> tuple[StreamRank, ...]:
    """`stream_ranks` of a few texts, ids [length] each of its own: cheap for wide models, since the n x n products of
    rows have the same eigenvalues as their covariance."""
    layers = model_blocks(student)

    def ranks(model: PreTrainedModel, width: int) -> list[float]:
        rows: dict[int, list[Tensor]] = {}
        with _watch_stream(model, layers, width, lambda place, seen: rows.setdefault(place, []).append(seen.cpu())):
            for ids in texts:
                forward(model, ids[None].to(model.device))
        return [effective_rank(torch.cat(rows[place])) for place in sorted(rows)]

    both = zip(ranks(teacher, plan.teacher_width), ranks(student, plan.student_width), strict=True)
    return tuple(StreamRank(layer, *pair) for layer, pair in enumerate(both))


def effective_rank(rows: Tensor) -> float:
    """RED's effective rank (arXiv 2605.29327) of `rows` [n, d]: each row minus the mean row, then at unit length.

    exp(- sum_j l_j log l_j),   l the eigenvalues of 1/n sum_i c_i c_i^T,   c_i = (x_i - mean) / || x_i - mean ||
    """
    rows = rows.double()
    centred = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    wide = centred.shape[1] > centred.shape[0]
    return entropy_rank(torch.linalg.eigvalsh(centred @ centred.T if wide else centred.T @ centred))


def entropy_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of non-negative numbers divided by their sum; 0 if they are all 0."""
    values = eigenvalues.clamp(min=0)
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


@contextmanager
def _watch_stream(
    model: nn.Module, layers: Sequence[str], width: int, see: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `see(0, rows [n, d])` with what the first layer is given, and `see(i, rows)` with what layer i returns."""

    def show(place: int, values: Any) -> None:
        stream = floating(values, width)
        assert stream is not None
        see(place, stream.reshape(-1, width))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        show(0, [*args, *kwargs.values()])

    def after(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs, output: show(index, output)

    modules = [model.get_submodule(name) for name in layers]
    with (
        hooked([(modules[0], before)], "before"),
        hooked([(module, after(index)) for index, module in enumerate(modules, start=1)], "after"),
    ):
        yield


def _stream_ranks(
    model: PreTrainedModel, layers: Sequence[str], width: int, text: Callable[[], Iterator[Tensor]]
) -> list[float]:
    """Two passes over the text: the mean row of each place, then the covariance of its rows around it, in float64."""
    # On CUDA they stay there; other accelerators have no float64.
    home = model.device if model.device.type == "cuda" else torch.device("cpu")
    sums = torch.zeros(len(layers) + 1, width, dtype=torch.float64, device=home)
    counts = [0] * len(sums)

    def add_mean(place: int, rows: Tensor) -> None:
        sums[place] += rows.to(home).double().sum(0)
        counts[place] += len(rows)

    with _watch_stream(model, layers, width, add_mean):
        for ids in text():
            forward(model, ids)
    means = sums / torch.tensor(counts, dtype=torch.float64, device=home).clamp(min=1)[:, None]
    squares = torch.zeros(len(sums), width, width, dtype=torch.float64, device=home)

    def add_square(place: int, rows: Tensor) -> None:
        rows = rows.to(wide_dtype(rows.dtype))
        squares[place] += _covariance(rows, means[place].to(rows)).to(home)

    with _watch_stream(model, layers, width, add_square):
        for ids in text():
            forward(model, ids)
    return [entropy_rank(torch.linalg.eigvalsh(square)) for square in squares]


def _covariance(rows: Tensor, mean: Tensor) -> Tensor:
    """Sum over rows [n, d] of c c^T, c the row minus `mean` at unit length; a row that is the mean adds nothing."""
    centred = torch.nn.functional.normalize(rows - mean, dim=-1)
    return centred.T @ centred
