"""How a block uses its residual stream, observed in one forward pass: which reads share an input, where writes arrive.

A block is cut into segments. Each starts at a point of the stream, its reads look at that point (most through a norm),
and its writes are added to give the next point:

    stream' = stream + sum_i scale_i * post_i(write_i)

Tensors are told apart by the memory they lie in, so that reshaped views count as one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan.roles import Plan
from .blockwise import BlockRunner, Call, watch_calls
from .norms import Norm


@dataclass(frozen=True)
class Reads:
    """Read weights `names` that share one input.

    input_of: The module whose input it is, or None if it has no row for each token (inside routed experts).
    norm: The norm that produced it, or None if none did.
    """

    input_of: str | None
    names: tuple[str, ...]
    norm: Norm | None


@dataclass(frozen=True)
class Write:
    """A write: its module, its weight's name, the norm of its output, if any, and whether the module reads as well."""

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


@dataclass(frozen=True)
class Event:
    """A module that ran inside a block: a norm, or one with read weights, write weights or both.

    It holds its call's tensors, since an address is one tensor's only as long as that lives.
    """

    module: str
    call: Call
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    norm: Norm | None = None

    @property
    def source(self) -> Hashable:
        """Where its input lies."""
        return _place(self.call.x)

    @property
    def result(self) -> Hashable:
        """Where its output lies."""
        return _place(self.call.y)


def segments_of_blocks(student: BlockRunner, ids: Tensor, plan: Plan, norms: Mapping[str, Norm]) -> list[list[Segment]]:
    """The segments of every block of a float32 model of the plan's student."""
    found, stream = [], student.first_stream(ids)
    for index in range(len(student)):
        events, output = _observe(student, index, ids, stream, plan, norms)
        found.append(cut(events, stream, output))
        stream = output
    return found


def cut(events: Sequence[Event], stream: Tensor, output: Tensor) -> list[Segment]:
    """The segments of one block that makes `output` of `stream`."""
    ends = [*cut_points(events, stream), len(events)]
    points = [stream, *(events[end].call.x for end in ends[:-1]), output]
    posts, made_by = _post_norms(events), _norm_outputs(events)
    found = []
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        inside = events[start:end]
        reads, writes = _shared_reads(inside, points[i], made_by), [event for event in inside if event.writes]
        if reads or writes:
            outputs = [posts.get(event.module, event).call.y for event in writes]
            scales = _scales(outputs, points[i + 1] - points[i])
            module = events[end].module if end < len(events) else None
            found.append(Segment(reads, tuple(_write(event, posts) for event in writes), module, scales))
    return found


def cut_points(events: Sequence[Event], stream: Tensor) -> list[int]:
    """Indices of the events that see the next point of the stream first, and so begin a new segment.

    A dense block runs, in this order (`|` is the only cut, index 5):

        input_norm  q  k  v  o  |  post_attention_norm  gate  up  down
          stream -> x  x  x          stream' -> x'       x'    x'

    No write comes before `o`, so that the cut is at the first event behind it that looks at the stream anew. That is a
    norm of something other than the point where the segment began and other than a write's output (the norm behind a
    write, as in Gemma 2), or, where a family reads without a norm, a read of something that no norm made and that no
    read of this segment has looked at.
    """
    posts = {event.module for event in _post_norms(events).values()}
    made_by_norm = _norm_outputs(events)
    cuts: list[int] = []
    for index, event in enumerate(events):
        start, point = (cuts[-1], events[cuts[-1]].call.x) if cuts else (0, stream)
        before, x = events[start:index], event.call.x
        if x.shape[-1] != point.shape[-1] or x.numel() != point.numel() or not any(e.writes for e in before):
            continue
        if event.norm:
            is_new = event.module not in posts and event.source != _place(point)
        else:
            looked_at = {e.source for e in before if e.reads}
            is_new = bool(event.reads) and event.source not in made_by_norm and event.source not in looked_at
        if is_new:
            cuts.append(index)
    return cuts


def _post_norms(events: Sequence[Event]) -> dict[str, Event]:
    """The norm of a write's output, by the write's module."""
    writes = {event.result: event.module for event in events if event.writes}
    return {writes[event.source]: event for event in events if event.norm and event.source in writes}


def _norm_outputs(events: Sequence[Event]) -> dict[Hashable, Norm]:
    return {event.result: event.norm for event in events if event.norm}


def _shared_reads(inside: Sequence[Event], point: Tensor, made_by: Mapping[Hashable, Norm]) -> tuple[Reads, ...]:
    """The reads of one segment, those of one input together."""
    sharing: dict[Hashable, list[Event]] = {}
    for event in inside:
        if event.reads:
            sharing.setdefault(event.source, []).append(event)
    return tuple(
        Reads(
            events[0].module if events[0].call.x.numel() == point.numel() else None,
            tuple(name for event in events for name in event.reads),
            made_by.get(source),
        )
        for source, events in sharing.items()
    )


def _write(event: Event, posts: Mapping[str, Event]) -> Write:
    post = posts.get(event.module)
    return Write(event.module, event.writes[0], post.norm if post else None, bool(event.reads))


def _observe(
    student: BlockRunner, index: int, ids: Tensor, stream: Tensor, plan: Plan, norms: Mapping[str, Norm]
) -> tuple[list[Event], Tensor]:
    """The events of one block, in their order, and its output."""
    prefix = student.names[index] + "."
    roles = [role for role in plan.of_kind("read", "write") if role.module.startswith(prefix)]
    modules = dict.fromkeys([role.module for role in roles] + [name for name in norms if name.startswith(prefix)])
    events: list[Event] = []

    def see(name: str, call: Call) -> None:
        reads, writes = (
            tuple(role.name for role in roles if role.module == name and role.kind == kind)
            for kind in ("read", "write")
        )
        events.append(Event(name, call, reads, writes, norms.get(name)))

    with watch_calls(student.model, modules, see):
        output = student.next_stream(index, ids, stream)
    return events, output


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


def _place(x: Tensor) -> Hashable:
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.numel()
