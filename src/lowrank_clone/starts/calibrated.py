"""The calibrated start: a student that is useful before its first training step. No gradient is needed (ours).

1. **Encoder.** One `M [d_T, d_S]` for the whole residual stream, `s = M^T h` (see `encoder.py`).
2. **Embedding.** With a head of its own: `Z = M`. A tied embedding is also the head, so its `Z` is the least-squares
   decoder of the head's input from the encoded stream, scaled to the length of `M`.
3. **Sweep.** The student runs through the calibration tokens block by block. Reads that share an input share one ridge
   regression `Z` from the student's own input `x_S` to the teacher's,

       min_Z  sum |Z x_S - x_T|^2 + lam_r |Z|^2,

   and writes are refitted so that the student's stream follows the teacher's encoded stream,

       min_Z  sum w^2 |Z^T o - (M^T h_T' - s)|^2 + lam_w |Z - M|^2,     w = 1 / rms(h_T'),

   with `o [n, d_T]` what the teacher's write gives for the student's own inner activation, `h_T'` the teacher's next
   point of the stream and `s` the student's last. So later layers correct what earlier ones lost.
4. **Head.** Its own `Z` by the same regression; with a tied head the last norm's gains, in the metric of the logits.

Norms before reads have gain 1, since a read's `Z` holds all gains. Those that are LayerNorms have bias 1 as well: what
they give has mean 0, so that the bias is an intercept. Constants that a family derives from the width (Gemma's
embedding scale) are taken from what both models do, never by family.

The sweep is not repeated: each regression depends on earlier ones only, so a second sweep would find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..objective.evaluate import evaluating
from ..objective.head import read_head
from ..plan.layers import model_blocks
from ..plan.roles import Plan
from ..progress import progress as show_progress
from .blockwise import BlockRunner, Call, Spool
from .norms import Norm, find_norms, outer_norms, unit
from .regression import Diagonal, Ridge, tied_gains
from .segments import Segment, Write, segments
from .stream_basis import StreamBasis, stream_statistics
from .trial_student import TrialStudent, round_to_one


def calibrated_start(
    teacher: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Tensor],
    *,
    basis: StreamBasis = "reads",
    share_head: bool = False,
    progress: bool = True,
) -> dict[str, Tensor]:
    """A student that is useful before its first training step, by regressions alone (ours; see `calibration.py`).

    Args:
        batches: Token ids [batch, length], on any device. About eight tokens for each channel of the teacher give a
            good start, more a better one. Streams of all of them are spooled to temporary files.
        basis: What the student's stream holds: what the teacher's `reads` see of it, some of its `channels`, or its
            principal components (`pca`).
        share_head: An untied LM head is to have the embedding's factor, so this is fitted for both.

    Returns:
        Factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32 on the teacher's device.

    Raises:
        InputError: Too few tokens, a basis that is unknown or does not go with a tied head, or a model whose blocks
            can't be run one at a time.
    """
    _check(plan, batches, basis, share_head)
    batches = [ids.to(teacher.device) for ids in batches]
    steps = 2 * len(model_blocks(teacher))
    with (
        evaluating(teacher),
        show_progress(steps, "calibrating", "block", shown=progress) as meter,
    ):
        return calibrate(teacher, plan, batches, basis, share_head, meter.advance)


def _check(plan: Plan, batches: Sequence[Tensor], basis: str, share_head: bool) -> None:
    if basis not in get_args(StreamBasis):
        raise InputError(f"basis: got {basis!r}, expected one of {', '.join(get_args(StreamBasis))}")
    if basis == "pca" and (share_head or plan.student_config.tie_word_embeddings):
        raise InputError(
            "basis: `pca` does not go with a tied head: its gain between the stream and the head is not diagonal in "
            "principal components, and the head has no factor to absorb it; use `reads`, which decodes the tied head"
        )
    distinct = {row.tobytes(): len(row) for ids in batches for row in ids.cpu().numpy()}
    tokens, width = sum(distinct.values()), plan.teacher_width
    if tokens < width:
        raise InputError(
            f"calibration text: got {tokens} tokens in sequences of their own, needed at least the teacher's width "
            f"{width}, or its regressions have no unique solution; give about {8 * width}"
        )


# Relative to the mean diagonal of the moments. Held-out errors of the single regressions ask for 10 to 30 times as much
# and give a worse student.
READ_RIDGE = 1e-3
WRITE_RIDGE = 1e-1
HEAD_RIDGE = 1e-4


@torch.no_grad()
def calibrate(
    teacher: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Tensor],
    basis: StreamBasis,
    share_head: bool,
    step: Callable[[], None],
) -> dict[str, Tensor]:
    """Steps 1 to 4 of this file, on checked input. `step` is called twice for each block of the model.

    Disk: two streams of all tokens, in the teacher's dtype at `d_T` and float32 at `d_S`. Memory: one batch's.
    """
    sweep = _Sweep(teacher, plan, batches, share_head)
    sweep.encode(basis, step)
    sweep.start()
    for index in range(len(sweep.teacher.blocks)):
        sweep.fit_block(index)
        step()
    sweep.fit_head()
    return sweep.trial.start()


class _Sweep:
    """One calibration: both models, their streams of all batches, and the encoder `M`."""

    def __init__(self, teacher: PreTrainedModel, plan: Plan, batches: Sequence[Tensor], share_head: bool) -> None:
        self.batches, self.plan, self.trial = batches, plan, TrialStudent(teacher, plan, share_head)
        student, sample = self.trial.student, batches[0][:1]
        self.teacher, self.student = BlockRunner(teacher, sample), BlockRunner(student, sample)
        norms = find_norms(student, plan, sample)
        self.first_norm, self.last_norm = outer_norms(norms, self.student.names)
        self.wiring = _wiring(self.student, sample, plan, norms)
        for norm in norms.values():
            self.trial.set_norm(norm, 1.0, 0.0)
        self._open_intercepts()
        self.teacher_streams, self.student_streams = Spool(teacher.device), Spool(teacher.device)
        self.encoder = torch.empty(0)

    def _open_intercepts(self) -> None:
        """Bias 1 for each LayerNorm that is read from."""
        norms = [group.norm for block in self.wiring for segment in block for group in segment.reads]
        for norm in norms + ([] if self.trial.tied else [self.last_norm]):
            if norm and norm.centers:
                self.trial.set_norm(norm, bias=1.0)

    def encode(self, basis: StreamBasis, step: Callable[[], None]) -> None:
        """Steps 1 and 2: `M`, every factor at it, and the embedding's factor."""
        self._start_teacher_streams()
        statistics = stream_statistics(
            self.teacher,
            self.plan,
            self.wiring,
            self.trial.teacher_gain,
            self.last_norm,
            self.batches,
            self.teacher_streams,
            step,
        )
        centered = self.last_norm is not None and self.last_norm.centers
        m = statistics.encoder(basis, self.plan.student_width, centered).to(self.trial.student.device)
        self.encoder = m
        self.trial.set_all(m)
        if self.trial.tied and basis != "channels":
            self.trial.set(self.trial.embedding, self._decoder())

    def start(self) -> None:
        """Both models at the first block, the student's embedding on the scale of the encoded stream."""
        self._start_teacher_streams()
        z = self.trial.factors[self.trial.embedding]
        moments = Diagonal()
        for i, ids in enumerate(self.batches):
            moments.add(self.student.start(ids), self.teacher_streams[i].float() @ z)
        if self.first_norm:
            self.trial.set_norm(self.first_norm, *moments.solve(self.first_norm.bias is not None))
        else:
            self.trial.set(self.trial.embedding, z * round_to_one(moments.ratio()))
        for i, ids in enumerate(self.batches):
            self.student_streams[i] = self.student.start(ids)

    def fit_block(self, index: int) -> None:
        """Step 3 for one block, and on to the next."""
        before: str | None = None
        for segment in self.wiring[index]:
            z = self.encoder
            for group in segment.reads:
                z = z if group.input_of is None else self._fit_reads(index, group.input_of, group.norm)
                for name in group.names:
                    self.trial.set(name, z)
            self._fit_writes(index, segment, before)
            before = segment.end
        for i, ids in enumerate(self.batches):
            for replay, streams in ((self.teacher, self.teacher_streams), (self.student, self.student_streams)):
                streams[i] = replay.block(index, ids, streams[i]).at(None)

    def fit_head(self) -> None:
        """Step 4. A scale that turns the head's output into logits may differ between the models."""
        scale = read_head(self.teacher.model).scale / read_head(self.student.model).scale
        moments = Ridge()
        for i, ids in enumerate(self.batches):
            moments.add(
                self.student.head(ids, self.student_streams[i]),
                self.teacher.head(ids, self.teacher_streams[i]).float() * scale,
            )
        norm = self.last_norm
        if not self.trial.tied:
            self.trial.set(self.trial.head, moments.solve(HEAD_RIDGE).mT)
        elif norm is not None and norm.weight is not None:
            weight = self.teacher.model.get_output_embeddings().weight.detach().float()
            z, with_bias = self.trial.factors[self.trial.head], norm.bias is not None
            self.trial.set_norm(norm, *tied_gains(moments, z, weight, with_bias, HEAD_RIDGE))

    def _start_teacher_streams(self) -> None:
        for i, ids in enumerate(self.batches):
            self.teacher_streams[i] = self.teacher.start(ids)

    def _decoder(self) -> Tensor:
        """The decoder [d_T, d_S] of the head's input from the encoded stream, on the scale of `M`."""
        moments, m = Ridge(), self.encoder
        for i, ids in enumerate(self.batches):
            stream = self.teacher_streams[i]
            encoded = stream.float() @ m
            unit_length = self.last_norm.unit(encoded) if self.last_norm else unit(encoded)
            moments.add(unit_length, self.teacher.head(ids, stream))
        d = moments.solve(HEAD_RIDGE).mT.to(m)
        return d * ((d * m).sum() / d.square().sum())

    def _fit_reads(self, index: int, input_of: str, norm: Norm | None) -> Tensor:
        moments = Ridge()
        for i, ids in enumerate(self.batches):
            x = self.student.block(index, ids, self.student_streams[i], stop=input_of).at(input_of)
            y = self.teacher.block(index, ids, self.teacher_streams[i], stop=input_of).at(input_of)
            moments.add(x, y, None if norm else _inverse_rms(y))
        return moments.solve(READ_RIDGE).mT

    def _fit_writes(self, index: int, segment: Segment, before: str | None) -> None:
        for write in segment.writes:
            if write.post:
                self.trial.set(write.name, self.trial.teacher_gain(write.post)[:, None] * self.encoder)
                self._fit_post(index, write)
        if segment.scales is None or min(map(abs, segment.scales)) < 1e-6:
            return
        if any(
            not write.also_reads and len(self.plan.roles[write.name].teacher_shape) != 2 for write in segment.writes
        ):
            return
        prior = torch.cat([self._prior(write) for write in segment.writes])
        moments = Ridge()
        for i, ids in enumerate(self.batches):
            watch = [write.module for write in segment.writes] + ([before] if before else [])
            ours = self.student.block(index, ids, self.student_streams[i], watch, segment.end)
            theirs = self.teacher.block(index, ids, self.teacher_streams[i], stop=segment.end).at(segment.end)
            last = ours.at(before) if before else self.student_streams[i]
            x = torch.cat(
                [
                    scale * self._teacher_width_output(write, ours.calls[write.module])
                    for scale, write in zip(segment.scales, segment.writes, strict=True)
                ],
                1,
            )
            target = (theirs.float() @ self.encoder - last).flatten(0, -2)
            moments.add(x, target - x @ prior, _inverse_rms(theirs))
        z = moments.solve(WRITE_RIDGE).to(prior) + prior
        for write, part in zip(segment.writes, z.split(self.plan.teacher_width), strict=True):
            self.trial.set(write.name, part)
            if write.post:
                self._fit_post(index, write)

    def _prior(self, write: Write) -> Tensor:
        """What a write's factor is pulled towards, for the output that `_teacher_width_output` gives."""
        z = self.trial.factors[write.name]
        if write.post is None or write.post.weight is None:
            return z
        gains = self.trial.student.get_parameter(write.post.weight) + write.post.offset
        return z * gains

    def _teacher_width_output(self, write: Write, call: Call) -> Tensor:
        """What the teacher's write gives for the student's inner activation: [n, d_T] float32.

        A norm behind it divides by the student's own root mean square.
        """
        role = self.plan.roles[write.name]
        weight = self.trial.basis[write.name]
        if write.also_reads:
            module = self.teacher.model.get_submodule(write.module)
            z = self.trial.factors[next(n for n in self._reads_of(write))]
            out = call.decoded(z, weight.dtype).run(module).y.float().flatten(0, -2)
        else:
            assert role.axis is not None
            out = call.x.flatten(0, -2) @ weight.movedim(role.axis, -1).float()
            for bias in self.plan.of_kind("bias"):
                if bias.factor == write.name:
                    out = out + self.trial.basis[bias.name].float()
        return out if write.post is None else out * _inverse_rms(call.y)

    def _reads_of(self, write: Write) -> list[str]:
        return [role.name for role in self.plan.of_kind("read") if role.module == write.module]

    def _fit_post(self, index: int, write: Write) -> None:
        """Gains of the norm behind a write: what it gives at gain 1, against the teacher's encoded."""
        assert write.post is not None
        self.trial.set_norm(write.post, 1.0, 0.0)
        moments, module = Diagonal(), write.post.module
        for i, ids in enumerate(self.batches):
            x = self.student.block(index, ids, self.student_streams[i], [module]).calls[module].y
            y = self.teacher.block(index, ids, self.teacher_streams[i], [module]).calls[module].y
            moments.add(x, y.float() @ self.encoder)
        self.trial.set_norm(write.post, *moments.solve(write.post.bias is not None))


def _wiring(student: BlockRunner, ids: Tensor, plan: Plan, norms: Mapping[str, Norm]) -> list[list[Segment]]:
    wiring, stream = [], student.start(ids)
    for index in range(len(student.blocks)):
        wiring.append(segments(student, index, ids, stream, plan, norms))
        stream = student.block(index, ids, stream).at(None)
    return wiring


def _inverse_rms(x: Tensor) -> Tensor:
    """[n, 1], one over each token's root mean square."""
    return x.flatten(0, -2).float().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12).reciprocal()
