"""One block of the student fitted to the teacher's, while both run on their own streams (step 3 of `calibrated.py`).

Reads that share an input share one ridge regression `Z` from the student's own input `x_S` to the teacher's,

    min_Z  sum |Z x_S - x_T|^2 + lam_r |Z|^2,

and writes are refitted so that the student's stream follows the teacher's encoded stream,

    min_Z  sum w^2 |Z^T o - (M^T h_T' - s)|^2 + lam_w |Z - M|^2,     w = 1 / rms(h_T'),

with `o [n, d_T]` what the teacher's write gives for the student's own inner activation, `h_T'` the teacher's next point
of the stream and `s` the student's last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blockwise import BlockRunner, Call
from .norms import Norm, inverse_rms
from .regression import Diagonal, Ridge
from .segments import Segment, Write
from .streams import Streams
from .trial_student import TrialStudent

# Relative to the mean diagonal of the moments. Held-out errors of the single regressions ask for 10 to 30 times as much
# and give a worse student.
READ_RIDGE = 1e-3
WRITE_RIDGE = 1e-1
# From this share of the stream's change on, a write's scale is taken for zero.
LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Pair:
    """Both models at one block: how they run, what is fitted, their streams, and the stream's basis `M` [d_T, d_S]."""

    teacher: BlockRunner
    student: BlockRunner
    trial: TrialStudent
    streams: Streams
    m: Tensor


def fit_block(pair: Pair, index: int, segments: list[Segment]) -> None:
    """Fit the reads and writes of block `index`, segment by segment, and move both streams behind it."""
    start: str | None = None
    for segment in segments:
        z = pair.m
        for group in segment.reads:
            if group.input_of is not None:  # inside routed experts, the factor of the router's input serves
                z = _fit_reads(pair, index, group.input_of, group.norm)
            for name in group.names:
                pair.trial.set_factor(name, z)
        _fit_writes(pair, index, segment, start)
        start = segment.end
    pair.streams.teacher.advance(lambda ids, stream: pair.teacher.next_stream(index, ids, stream))
    pair.streams.student.advance(lambda ids, stream: pair.student.next_stream(index, ids, stream))


def _fit_reads(pair: Pair, index: int, input_of: str, norm: Norm | None) -> Tensor:
    """The factor [d_T, d_S] of the reads that share the input of module `input_of`."""
    moments = Ridge()
    for ids, teacher, student in pair.streams:
        x = pair.student.block(index, ids, student, stop=input_of).point(input_of)
        y = pair.teacher.block(index, ids, teacher, stop=input_of).point(input_of)
        moments.add(x, y, None if norm else inverse_rms(y))
    return moments.solve(READ_RIDGE).mT


def _fit_writes(pair: Pair, index: int, segment: Segment, start: str | None) -> None:
    """The factors of the writes that lead from the stream's point before module `start` to the segment's end.

    They stay at `M` where the next point is no sum of theirs, and for raw experts, whose outputs can't be told apart.
    """
    for write in segment.writes:
        if write.post:
            pair.trial.set_factor(write.name, pair.trial.teacher_gain(write.post)[:, None] * pair.m)
            _fit_post_norm(pair, index, write.post)
    if segment.scales is None or min(map(abs, segment.scales)) < LEAST_SCALE:
        return
    roles = pair.trial.plan.roles
    if any(not write.also_reads and len(roles[write.name].teacher_shape) != 2 for write in segment.writes):
        return
    prior = torch.cat([_prior(pair.trial, write) for write in segment.writes])
    z = solve_writes(collect_write_moments(pair, index, segment, start, prior), prior)
    for write, part in zip(segment.writes, z.split(len(pair.m)), strict=True):
        pair.trial.set_factor(write.name, part)
        if write.post:
            _fit_post_norm(pair, index, write.post)


def collect_write_moments(pair: Pair, index: int, segment: Segment, start: str | None, prior: Tensor) -> Ridge:
    """Moments of the writes' outputs `x [n, k d_T]` and of what `x @ prior` leaves of the student's next step."""
    assert segment.scales is not None
    modules = [write.module for write in segment.writes]
    moments = Ridge()
    for ids, teacher, student in pair.streams:
        ours = pair.student.block(index, ids, student, [*modules, *([start] if start else [])], segment.end)
        theirs = pair.teacher.block(index, ids, teacher, stop=segment.end).point(segment.end)
        outputs = [_teacher_width_output(pair, write, ours.calls[write.module]) for write in segment.writes]
        x = torch.cat([scale * output for scale, output in zip(segment.scales, outputs, strict=True)], 1)
        last = ours.point(start) if start else student
        step = theirs.flatten(0, -2).float() @ pair.m - last.flatten(0, -2)
        moments.add(x, step - x @ prior, inverse_rms(theirs))
    return moments


def solve_writes(moments: Ridge, prior: Tensor) -> Tensor:
    """The writes' factors, one below the other: [k d_T, d_S]."""
    return moments.solve(WRITE_RIDGE).to(prior) + prior


def _prior(trial: TrialStudent, write: Write) -> Tensor:
    """What a write's factor is pulled towards, for the output that `_teacher_width_output` gives."""
    z = trial.factors[write.name]
    if write.post is None or write.post.weight is None:
        return z
    return z * (trial.student.get_parameter(write.post.weight) + write.post.offset)


def _teacher_width_output(pair: Pair, write: Write, call: Call) -> Tensor:
    """What the teacher's write gives for the student's inner activation: [n, d_T] float32.

    A norm behind it divides by the student's own root mean square.
    """
    plan, weights = pair.trial.plan, pair.trial.teacher_weights
    role, weight = plan.roles[write.name], weights[write.name]
    if write.also_reads:
        reads = [read.name for read in plan.of_kind("read") if read.module == write.module]
        decoded = call.decoded(pair.trial.factors[reads[0]], weight.dtype)
        output = decoded.run(pair.teacher.model.get_submodule(write.module)).y.float().flatten(0, -2)
    else:
        assert role.axis is not None
        output = call.x.flatten(0, -2) @ weight.movedim(role.axis, -1).float()
        for bias in plan.of_kind("bias"):
            if bias.factor == write.name:
                output = output + weights[bias.name].float()
    return output if write.post is None else output * inverse_rms(call.y)


def _fit_post_norm(pair: Pair, index: int, post: Norm) -> None:
    """Gains of the norm behind a write: what it gives at gain 1, against the teacher's encoded."""
    pair.trial.set_norm(post, 1.0, 0.0)
    moments, module = Diagonal(), post.module
    for ids, teacher, student in pair.streams:
        x = pair.student.block(index, ids, student, [module]).calls[module].y
        y = pair.teacher.block(index, ids, teacher, [module]).calls[module].y
        moments.add(x, y.float() @ pair.m)
    pair.trial.set_norm(post, *moments.solve(post.bias is not None))
