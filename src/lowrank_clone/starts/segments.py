"""How a block uses its residual stream, observed in one forward pass: which reads share an input, where writes arrive.

A block is cut into segments. Each starts at a point of the stream, its reads look at that point (most through a norm),
and its writes are added to give the next point:

    stream' = stream + sum_i scale_i * post_i(write_i)

Tensors are told apart by the memory they lie in, so that reshaped views count as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..plan.roles import Plan, Role
from .blockwise import BlockRunner, Call, watch_calls
from .norms import Norm


@dataclass(frozen=True)
class Reads:
    """Weights `names` that read one input, that of module `input_of`; `norm` made it, or None where none did.

    `input_of` is None where that input is not one row for each token, as behind the routing of experts.
    """

    input_of: str | None
    names: tuple[str, ...]
    norm: Norm | None


@dataclass(frozen=True)
class Write:
    """A write: its module, its weight's name, and the norm of its output, if any. `raw`: the module reads as well."""

    module: str
    name: str
    post: Norm | None
    also_reads: bool


@dataclass(frozen=True)
class Segment:
    """From one point of the stream to the next, which is the input of module `end` (None: the block's output).

    `scales` holds each write's scale, or None where the next point is no such sum, as behind a gate.
    """

    reads: tuple[Reads, ...]
    writes: tuple[Write, ...]
    end: str | None
    scales: tuple[float, ...] | None


@dataclass
class _Event:
    module: str
    call: Call
    reads: list[Role]
    writes: list[Role]
    norm: Norm | None

    @property
    def source(self) -> Any:
        return _place(self.call.x)

    @property
    def result(self) -> Any:
        return _place(self.call.y)


def segments(
    replay: BlockRunner, index: int, ids: Tensor, stream: Tensor, plan: Plan, norms: Mapping[str, Norm]
) -> list[Segment]:
    """The segments of block `index` of a float32 model of the plan's student."""
    events, out = _observe(replay, index, ids, stream, plan, norms)
    makers = {event.result: event for event in events if event.writes}
    posts = {makers[e.source].module: e for e in events if e.norm and e.source in makers}
    made = {event.result: event.norm for event in events if event.norm}
    cutter = _Cutter(stream, posts, made)
    for event in events:
        cutter.take(event)
    cutter.cut(None, out)
    return cutter.segments


class _Cutter:
    """Cuts the events of one block into segments."""

    def __init__(self, stream: Tensor, posts: Mapping[str, _Event], made: Mapping[Any, Norm]) -> None:
        self.segments: list[Segment] = []
        self._point, self._posts, self._made = stream, posts, made
        self._post_modules = {event.module for event in posts.values()}
        self._reads: dict[Any, Reads] = {}
        self._writes: list[_Event] = []

    def take(self, event: _Event) -> None:
        if self._writes and self._sees_next_point(event):
            self.cut(event.module, event.call.x)
        if event.reads:
            names = tuple(role.name for role in event.reads)
            input_of = event.module if event.call.x.numel() == self._point.numel() else None
            group = self._reads.get(event.source, Reads(input_of, (), self._made.get(event.source)))
            self._reads[event.source] = replace(group, names=group.names + names)
        if event.writes:
            self._writes.append(event)

    def cut(self, end: str | None, point: Tensor) -> None:
        """End the segment at `point`."""
        writes = tuple(self._write(event) for event in self._writes)
        if writes or self._reads:
            outputs = [self._posts.get(event.module, event).call.y for event in self._writes]
            scales = _scales(outputs, point - self._point)
            self.segments.append(Segment(tuple(self._reads.values()), writes, end, scales))
        self._reads, self._writes, self._point = {}, [], point

    def _sees_next_point(self, event: _Event) -> bool:
        x = event.call.x
        of_stream = x.shape[-1] == self._point.shape[-1] and x.numel() == self._point.numel()
        if event.norm:
            return of_stream and event.module not in self._post_modules and event.source != _place(self._point)
        return of_stream and bool(event.reads) and event.source not in self._made and event.source not in self._reads

    def _write(self, event: _Event) -> Write:
        post = self._posts.get(event.module)
        return Write(event.module, event.writes[0].name, post.norm if post else None, bool(event.reads))


def _observe(
    replay: BlockRunner, index: int, ids: Tensor, stream: Tensor, plan: Plan, norms: Mapping[str, Norm]
) -> tuple[list[_Event], Tensor]:
    prefix = replay.names[index] + "."
    roles: dict[str, list[Role]] = {}
    for role in plan.of_kind("read", "write"):
        if role.module.startswith(prefix):
            roles.setdefault(role.module, []).append(role)
    events: list[_Event] = []

    def see(name: str, call: Call) -> None:
        # Events hold the tensors: an address is one tensor's only as long as that lives.
        reads, writes = ([role for role in roles.get(name, ()) if role.kind == kind] for kind in ("read", "write"))
        events.append(_Event(name, call, reads, writes, norms.get(name)))

    with watch_calls(replay.model, [*roles, *(name for name in norms if name.startswith(prefix))], see):
        out = replay.block(index, ids, stream).out
    assert out is not None
    return events, out


def _scales(outputs: list[Tensor], delta: Tensor) -> tuple[float, ...] | None:
    """The numbers that the outputs are added with to give `delta`, if they are."""
    if not outputs or any(output.numel() != delta.numel() for output in outputs):
        return None
    columns = torch.stack([output.flatten() for output in outputs], 1).double().cpu()
    target = delta.flatten()[:, None].double().cpu()
    solution = torch.linalg.lstsq(columns, target).solution
    if not (columns @ solution - target).norm() < 1e-3 * target.norm():
        return None
    return tuple(solution[:, 0].tolist())


def _place(x: Tensor) -> Any:
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.numel()
