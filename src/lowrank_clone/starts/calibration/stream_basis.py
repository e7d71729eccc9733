"""The stream's basis `M [d_T, d_S]`: what of the teacher's residual stream the student's is to hold, `s = M^T h`.

Statistics of the teacher alone, over its reads r (weight `W_r`, input `x_r = gain_r * u_r`, `u` token-normalised):

    C = sum over points of the stream of  mean_tokens u u^T            what the stream does
    G = sum_r gain_r (W_r^T W_r / E|W_r x_r|^2) gain_r                 what is seen of it, and the LM head's share

The LM head's share is a tenth of that of all other reads together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...plan.roles import Plan
from ...precision import to_float64
from ..registry import StreamBasis
from .blockwise import BlockRunner
from .norms import Norm, unit
from .regression import Ridge
from .segments import Reads, Segment
from .streams import Spool
from .trial_student import one_hot

HEAD_SHARE = 0.1


@dataclass(frozen=True)
class StreamStatistics:
    """`C` and `G` [d_T, d_T], float64."""

    covariance: Tensor
    metric: Tensor

    def basis(self, kind: StreamBasis, width: int, centered: bool) -> Tensor:
        """`M` [d_T, d_S], orthonormal columns, float32.

            reads      minimises  sum_r E |W_r (x_r - its best reconstruction from M^T u)|^2: the leading eigenvectors
                       of G^1/2 C G^1/2, mapped by G^1/2 and orthonormalised  (reduced-rank regression; ours)
            channels   one-hot columns: the largest C_ii G_ii                  (ours, after RED, arXiv 2605.29327)
            pca        the leading eigenvectors of C

        Args:
            centered: The norms are LayerNorms, which remove the mean direction, so the least important column of `M` is
                rotated onto it.
        """
        c, g = self.covariance, self.metric
        if kind == "channels":
            return one_hot((c.diagonal() * g.diagonal()).topk(width).indices, len(c))
        if kind == "pca":
            m = torch.linalg.eigh(c)[1].flip(-1)[:, :width]
        else:
            values, vectors = torch.linalg.eigh(g)
            root = (vectors * values.clamp_min(values.max() * 1e-9).sqrt()) @ vectors.mT
            m = torch.linalg.qr(root @ torch.linalg.eigh(root @ c @ root)[1].flip(-1)[:, :width])[0]
        return (_last_to_mean(m) if centered else m).float().contiguous()


def _last_to_mean(m: Tensor) -> Tensor:
    """`m` [d_T, d_S] reflected so that its last column becomes what a mean over the new columns measures."""
    v = m.new_full((m.shape[1],), -(m.shape[1] ** -0.5))
    v[-1] += 1
    return m - torch.outer(m @ v, v) * (2 / (v @ v))


def stream_statistics(
    teacher: BlockRunner,
    plan: Plan,
    segments: Sequence[Sequence[Segment]],
    gain: Callable[[Norm], Tensor],
    last_norm: Norm | None,
    streams: Spool,
    step: Callable[[], None],
) -> StreamStatistics:
    """Run the teacher over the batches, block by block.

    Args:
        segments: Of every block.
        gain: A norm's gains in the teacher, [d_T] float32.
        streams: The streams into the first block; left as the last block's outputs.
        step: Called after each block.
    """
    weights = dict(teacher.model.named_parameters(remove_duplicate=False))
    total: StreamStatistics | None = None
    groups = 0
    for index in range(len(teacher)):
        inputs = {
            group.input_of: _Input(group, plan)
            for segment in segments[index]
            for group in segment.reads
            if group.input_of is not None
        }
        streams.advance(partial(_take_in, teacher, index, inputs))
        for moments in inputs.values():
            part = moments.statistics(weights, gain)
            total = part if total is None else _sum(total, part)
        groups += len(inputs)
        step()
    head = _head_statistics(teacher, last_norm, streams)
    if total is None:
        return head
    return StreamStatistics(total.covariance + head.covariance, total.metric + HEAD_SHARE * groups * head.metric)


def _take_in(teacher: BlockRunner, index: int, inputs: Mapping[str, _Input], ids: Tensor, stream: Tensor) -> Tensor:
    """Run one block on one batch, add what its reads are given, and return its output."""
    norms = [moments.norm.module for moments in inputs.values() if moments.norm]
    trace = teacher.block(index, ids, stream, [*inputs, *norms])
    for module, moments in inputs.items():
        moments.add(trace.point(module), trace.point(moments.norm.module) if moments.norm else None)
    return trace.point(None)


class _Input:
    """Moments of the input that a group of reads shares: `x` as the reads get it, `u` of the stream before its norm."""

    def __init__(self, group: Reads, plan: Plan) -> None:
        self.norm, self._roles = group.norm, [plan.roles[name] for name in group.names]
        self._tokens = 0
        self._xx: Tensor | float = 0.0
        self._uu: Tensor | float = 0.0

    def add(self, x: Tensor, point: Tensor | None) -> None:
        """Take in the reads' input `x` and the stream at `point`, before the norm if there is one; each [..., d_T]."""
        if self.norm is not None and point is not None:
            x, u = x.flatten(0, -2).float(), self.norm.unit(point)
        else:
            # Inputs that no norm made are normalised; else the few tokens of massive activations dominate.
            x = u = unit(x)
        self._xx = self._xx + to_float64(x.mT @ x)
        self._uu = self._uu + to_float64(u.mT @ u)
        self._tokens += len(x)

    def statistics(self, weights: Mapping[str, Tensor], gain: Callable[[Norm], Tensor]) -> StreamStatistics:
        """This group's part of `C` and `G`."""
        assert isinstance(self._xx, Tensor) and isinstance(self._uu, Tensor)
        metric = torch.zeros_like(self._xx)
        for role in self._roles:
            assert role.axis is not None
            rows = weights[role.name].detach().movedim(role.axis, -1).flatten(0, -2).float()
            gram = to_float64(rows.mT @ rows)
            metric += gram * (self._tokens / (gram * self._xx).sum().clamp_min(1e-30))
        gains = to_float64(gain(self.norm)) if self.norm else torch.ones_like(metric[0])
        metric = gains[:, None] * (metric / len(self._roles)) * gains
        return StreamStatistics(self._uu / self._tokens, metric)


def _head_statistics(teacher: BlockRunner, norm: Norm | None, streams: Spool) -> StreamStatistics:
    """The same of the LM head, whose gains are fitted to its inputs, since a family may scale these further."""
    moments = Ridge()
    for ids, stream in streams:
        y = teacher.head_input(ids, stream)
        u = norm.unit(stream) if norm else unit(stream)
        moments.add(torch.cat([u, y.flatten(0, -2).float()], 1), y)
    d = len(moments.sy)
    uu, uy, yy = moments.xx[:d, :d], moments.xy[:d], moments.xy[d:]
    gains = uy.diagonal() / uu.diagonal().clamp_min(1e-30)
    weight = teacher.model.get_output_embeddings().weight.detach().float()
    gram = to_float64(weight.mT @ weight)
    metric = gains[:, None] * gram * gains / (gram * yy).sum().clamp_min(1e-30) * moments.count
    return StreamStatistics(uu / moments.count, metric)


def _sum(a: StreamStatistics, b: StreamStatistics) -> StreamStatistics:
    return StreamStatistics(a.covariance + b.covariance, a.metric + b.metric)
