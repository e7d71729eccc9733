"""The calibrated start: a student that is useful before its first training step. No gradient is needed (ours).

1. **Basis.** One `M [d_T, d_S]` for the whole residual stream, `s = M^T h` (see `calibration/stream_basis.py`).
2. **Embedding.** With a head of its own: `Z = M`. A tied embedding is also the head, so its `Z` is the least-squares
   decoder of the head's input from the encoded stream, scaled to the length of `M`.
3. **Sweep.** The student runs through the calibration tokens block by block, and its reads and writes are fitted on the
   way, so that later layers correct what earlier ones lost (see `calibration/sweep.py`).
4. **Head.** Its own `Z` by the same regression; with a tied head the last norm's gains, in the metric of the logits.

Norms before reads have gain 1, since a read's `Z` holds all gains. Those that are LayerNorms have bias 1 as well: what
they give has mean 0, so that the bias is an intercept. Constants that a family derives from the width (Gemma's
embedding scale) are taken from what both models do, never by family.

The sweep is not repeated: each regression depends on earlier ones only, so a second sweep would find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..factors.teacher import as_type
from ..hooks import evaluating
from ..objective.head import read_head
from ..plan.layers import model_blocks
from ..plan.roles import Plan
from ..progress import progress as show_progress
from .calibration.blockwise import run_blockwise
from .calibration.check import check_inputs, check_result, check_variety
from .calibration.norms import Norm, find_norms, outer_norms, unit
from .calibration.regression import Diagonal, Ridge, tied_gains
from .calibration.segments import segments_of_blocks
from .calibration.stream_basis import stream_statistics
from .calibration.streams import Spool, Streams, check_space
from .calibration.sweep import Pair, fit_block
from .calibration.trial_student import TrialStudent, round_to_one
from .registry import StartInputs, StreamBasis, check_basis

HEAD_RIDGE = 1e-4  # relative to the mean diagonal of the moments


def calibrated_start(
    teacher: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Tensor],
    *,
    basis: StreamBasis = "reads",
    share_head: bool = False,
    progress: bool = True,
) -> dict[str, Tensor]:
    """A student that is useful before its first training step, by regressions alone (ours; see `calibrated.py`).

        plan = make_plan(teacher.config, hidden_size=384)
        start = calibrated_start(teacher, plan, list(ids.split(4)))     # ids: [rows, length]
        clone = CloneModel(teacher, 384, start=start)

    Takes two forward passes of the teacher and three to four of the student, block by block, in the teacher's and in
    float32 precision. Disk (where `tempfile` puts files): `d_T` numbers of the teacher's dtype and `d_S` of float32 for
    each token. Memory: both models and the activations of one batch.

    Args:
        teacher: Any decoder language model whose blocks can be run one at a time; it is left as it was.
        plan: The plan of the clone, `make_plan(teacher.config, hidden_size)`.
        batches: Token ids [batch, length], on any device. About eight tokens for each channel of the teacher give a
            good start, more a better one.
        basis: What the student's stream holds: what the teacher's `reads` see of it, some of its `channels`, or its
            principal components (`pca`).
        share_head: Whether an untied LM head has the embedding's factor, which is then fitted for both.
        progress: Whether to show progress on stderr.

    Returns:
        Factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32 on the teacher's device.

    Raises:
        InputError: Too few tokens, text that repeats itself or too little space on the disk; a basis that is unknown or
            does not go with a tied head; a model whose blocks can't be run one at a time, or one whose weights or
            activations are not finite.
    """
    teacher = as_type(teacher, plan.teacher_config)
    _check(teacher, plan, batches, basis, share_head)
    batches = [ids.to(teacher.device) for ids in batches]
    steps = 2 * len(model_blocks(teacher))
    with evaluating(teacher), show_progress(steps, "calibrating", "block", shown=progress) as meter:
        return calibrate(teacher, plan, batches, basis, share_head, meter.advance)


def _check(teacher: PreTrainedModel, plan: Plan, batches: Sequence[Tensor], basis: str, share_head: bool) -> None:
    check_basis(basis, share_head or plan.student_config.tie_word_embeddings)
    check_inputs(teacher, batches)
    distinct = {row.tobytes(): len(row) for ids in batches for row in ids.cpu().numpy()}
    tokens, width = sum(distinct.values()), plan.teacher_width
    if tokens < width:
        raise InputError(
            f"calibration text: got {tokens} tokens in sequences of their own, needed at least the teacher's width "
            f"{width}, or its regressions have no unique solution; give about {8 * width}"
        )
    check_space(sum(ids.numel() for ids in batches) * (width * teacher.dtype.itemsize + plan.student_width * 4))


@torch.no_grad()
def calibrate(
    teacher: PreTrainedModel,
    plan: Plan,
    batches: Sequence[Tensor],
    basis: StreamBasis,
    share_head: bool,
    step: Callable[[], None],
) -> dict[str, Tensor]:
    """Steps 1 to 4 of this file, on checked input. `step` is called twice for each block of the model."""
    trial, sample = TrialStudent(teacher, plan, share_head), batches[0][:1]
    runner, student = run_blockwise(teacher, sample), run_blockwise(trial.student, sample)
    norms = find_norms(trial.student, plan, sample)
    first_norm, last_norm = outer_norms(norms, student.names)
    segments = segments_of_blocks(student, sample, plan, norms)
    _neutral_norms(trial, norms, [group.norm for block in segments for segment in block for group in segment.reads])
    if last_norm and last_norm.centers and not trial.tied:
        trial.set_norm(last_norm, bias=1.0)

    streams = Streams(Spool(batches), Spool(batches))
    streams.teacher.fill(runner.first_stream)
    statistics = stream_statistics(runner, plan, segments, trial.teacher_gain, last_norm, streams.teacher, step)
    check_variety(statistics.covariance, plan.student_width)
    centered = last_norm is not None and last_norm.centers
    m = statistics.basis(basis, plan.student_width, centered).to(trial.student.device)
    pair = Pair(runner, student, trial, streams, m)

    trial.set_factors(m)
    if trial.tied and basis != "channels":
        trial.set_factor(trial.embedding, _decoder(pair, last_norm))
    _embed(pair, first_norm)
    for index in range(len(student)):
        fit_block(pair, index, segments[index])
        step()
    _fit_head(pair, last_norm)
    check_result(trial.result(), teacher)
    return trial.result()


def _neutral_norms(trial: TrialStudent, norms: Mapping[str, Norm], before_reads: Sequence[Norm | None]) -> None:
    """Gain 1 for every norm, and bias 1 for each LayerNorm that is read from, else 0."""
    for norm in norms.values():
        trial.set_norm(norm, 1.0, 0.0)
    for read_norm in before_reads:
        if read_norm and read_norm.centers:
            trial.set_norm(read_norm, bias=1.0)


def _decoder(pair: Pair, last_norm: Norm | None) -> Tensor:
    """The decoder [d_T, d_S] of the head's input from the encoded stream, on the scale of `M` (step 2, tied).

    The teacher's streams are the last block's outputs.
    """
    moments, m = Ridge(), pair.m
    for ids, stream in pair.streams.teacher:
        encoded = stream.float() @ m
        moments.add(last_norm.unit(encoded) if last_norm else unit(encoded), pair.teacher.head_input(ids, stream))
    z = moments.solve(HEAD_RIDGE).mT.to(m)
    return z * ((z * m).sum() / z.square().sum())


def _embed(pair: Pair, first_norm: Norm | None) -> None:
    """Both models' streams into the first block, the student's embedding on the scale of the encoded stream."""
    pair.streams.teacher.fill(pair.teacher.first_stream)
    trial, moments = pair.trial, Diagonal()
    z = trial.factors[trial.embedding]
    for ids, stream in pair.streams.teacher:
        moments.add(pair.student.first_stream(ids), stream.float() @ z)
    if first_norm:
        trial.set_norm(first_norm, *moments.solve(first_norm.bias is not None))
    else:
        trial.set_factor(trial.embedding, z * round_to_one(moments.ratio()))
    pair.streams.student.fill(pair.student.first_stream)


def _fit_head(pair: Pair, norm: Norm | None) -> None:
    """Step 4. A scale that turns the head's output into logits may differ between the models."""
    trial, moments = pair.trial, Ridge()
    scale = read_head(pair.teacher.model).scale / read_head(pair.student.model).scale
    for ids, teacher, student in pair.streams:
        moments.add(pair.student.head_input(ids, student), pair.teacher.head_input(ids, teacher).float() * scale)
    if not trial.tied:
        trial.set_factor(trial.head, moments.solve(HEAD_RIDGE).mT)
    elif norm is not None and norm.weight is not None:
        weight = pair.teacher.model.get_output_embeddings().weight.detach().float()
        z, with_bias = trial.factors[trial.head], norm.bias is not None
        trial.set_norm(norm, *tied_gains(moments, z, weight, with_bias, HEAD_RIDGE))


def start(inputs: StartInputs) -> dict[str, Tensor]:
    """`method.init: calibrated`."""
    return calibrated_start(
        inputs.teacher,
        inputs.plan,
        inputs.batches,
        basis=inputs.basis,
        share_head=inputs.share_head,
        progress=inputs.progress,
    )
