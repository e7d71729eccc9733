"""Channel selection: the start of RED (arXiv 2605.29327).

One set of channels for every factor, by how active they are in the teacher's residual stream. Over the points l of the
stream (embedding output and every block's), sequences s and tokens t,

    score_c = mean_l sqrt( sum_s ( mean_t |h_l[s, t, c]| )^2 )

and the `d_S` largest are kept, in ascending order of their index: `Z[i_j, j] = 1`.

Norms start from the teacher's gains at those channels. A root mean square over the kept channels is larger than that
over all: the kept ones hold nearly all of the stream's square but are fewer, so `rms_S ~ rms_T sqrt(d_T / d_S)`. Gains
times `sqrt(d_T / d_S)` keep what the reads see at the teacher's scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..factors.teacher import as_type
from ..hooks import evaluating
from ..objective.head import read_head
from ..plan.layers import model_blocks
from ..plan.roles import Plan
from ..precision import to_float64
from .calibration.blockwise import first_stream, watch_calls
from .calibration.check import check_inputs, check_result
from .calibration.norms import Norm, find_norms, outer_norms
from .calibration.trial_student import TrialStudent, one_hot, round_to_one
from .registry import StartInputs


def channels_start(
    teacher: PreTrainedModel, plan: Plan, batches: Sequence[Tensor], *, sequences: int = 15, share_head: bool = False
) -> dict[str, Tensor]:
    """Factors that select the teacher's most active channels (RED, arXiv 2605.29327; see `channels.py`).

        plan = make_plan(teacher.config, hidden_size=384)
        clone = CloneModel(teacher, 384, start=channels_start(teacher, plan, [ids]))     # ids: [rows, length]

    Args:
        teacher: Any decoder language model; it is left as it was.
        plan: The plan of the clone, `make_plan(teacher.config, hidden_size)`.
        batches: Token ids [batch, length], on any device.
        sequences: How many of their sequences are looked at (all, if there are fewer); 15 are enough (RED).
        share_head: Whether an untied LM head has the embedding's factor.

    Returns:
        One-hot factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32 on the teacher's device.
        The embedding's is scaled where the family derives an embedding scale from the width.

    Raises:
        InputError: There is no text, or the teacher's activations are not finite.
    """
    teacher = as_type(teacher, plan.teacher_config)
    check_inputs(teacher, batches)
    rows = [row[None].to(teacher.device) for ids in batches for row in ids][:sequences]
    with evaluating(teacher):
        found = select(teacher, plan, rows, share_head)
    check_result(found, teacher)
    return found


@torch.no_grad()
def select_channels(teacher: PreTrainedModel, batches: Sequence[Tensor], count: int) -> Tensor:
    """Indices of the `count` most active channels of the teacher's stream, ascending, [count]."""
    blocks = model_blocks(teacher)
    points = ["into the first block", *blocks]
    squares: dict[str, Tensor | float] = dict.fromkeys(points, 0.0)

    def add(point: str, stream: Tensor) -> None:
        squares[point] = squares[point] + to_float64(stream.float().abs().mean(1)).square().sum(0)  # [d_T]

    with (
        watch_calls(teacher, blocks[:1], lambda name, call: add(points[0], call.x), "before"),
        watch_calls(teacher, blocks, lambda name, call: add(name, call.y)),
    ):
        for ids in batches:
            teacher(input_ids=ids, use_cache=False)
    scores = torch.stack([torch.as_tensor(square).sqrt() for square in squares.values()]).mean(0)
    if not scores.isfinite().all():
        raise InputError("start: the teacher's activations overflow on this text; load the teacher in another dtype")
    return scores.topk(count).indices.sort().values


@torch.no_grad()
def select(teacher: PreTrainedModel, plan: Plan, batches: Sequence[Tensor], share_head: bool) -> dict[str, Tensor]:
    """The start as a whole, on checked input: factors and vectors by the student's parameter name."""
    trial, sample = TrialStudent(teacher, plan, share_head), batches[0][:1]
    kept = select_channels(teacher, batches, plan.student_width).to(teacher.device)
    trial.set_factors(one_hot(kept, plan.teacher_width))
    norms = find_norms(trial.student, plan, sample)
    for role in plan.of_kind("vector"):
        trial.set_vector(role.name, trial.teacher_weights[role.name][kept])
    scale = (plan.teacher_width / plan.student_width) ** 0.5
    gains = {norm.module: trial.teacher_gain(norm)[kept] * scale for norm in norms.values()}
    _match_constants(teacher, trial, norms, gains, sample)
    for norm in norms.values():
        trial.set_norm(norm, gains[norm.module])
    return trial.result()


def _match_constants(
    teacher: PreTrainedModel, trial: TrialStudent, norms: Mapping[str, Norm], gains: dict[str, Tensor], ids: Tensor
) -> None:
    """Let the embedding and the last norm make up for constants that a family derives from the width, if any."""
    z = trial.factors[trial.embedding]
    ratio = 1.0
    first, last = outer_norms(norms, model_blocks(teacher))
    if first is None:
        ours, theirs = first_stream(trial.student, ids), first_stream(teacher, ids).float() @ z
        ratio = round_to_one(float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-30)))
        trial.set_factor(trial.embedding, z * ratio)
    if last is not None:
        scale = read_head(teacher).scale / read_head(trial.student).scale
        gains[last.module] = gains[last.module] * (scale / ratio if trial.tied else scale)


def start(inputs: StartInputs) -> dict[str, Tensor]:
    """`method.init: channels`."""
    return channels_start(inputs.teacher, inputs.plan, inputs.batches, share_head=inputs.share_head)
