"""What a run will cost, before anything runs: FLOPs, memory, hours and energy, from the plan alone.

FLOPs are those of the matrix products, two per multiply-add, as `torch.utils.flop_counter` counts them: exact where
every layer attends to the whole sequence by explicit products (`attn_implementation="eager"`); kernels that skip masked
blocks do fewer. Memory is the sum of the tensors that are alive at the fullest moment; allocators and libraries come on
top.

Axes: n = micro_batch * sequence_length tokens, G micro-batches a step, V vocabulary, d_T and d_S the residual widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import InputError
from ..objective.lm_kl import block_elements, chunk_elements_of
from ..objective.objective import Objective
from ..plan.roles import Plan, TapSpec
from .accelerators import ACCELERATORS
from .counts import Counts

# What of a student's layer runs twice.
Recompute = Literal["nothing", "elementwise", "all"]


@dataclass(frozen=True)
class Run:
    """A budget of tokens on accelerators of one kind. Energy is the boards' alone, at full power."""

    hours: float
    kilowatt_hours: float
    fits: bool


@dataclass(frozen=True)
class Moment:
    """A time of a step at which much memory is in use: what is alive then, bytes by part."""

    name: str
    parts: Mapping[str, float]

    @property
    def bytes(self) -> float:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Cost:
    """FLOPs per token and bytes, each by part.

    `memory` lists everything; what is alive together is in `moments`, since gradients are not all there while
    activations are.
    """

    flops: Mapping[str, float]
    memory: Mapping[str, float]
    moments: tuple[Moment, ...]
    tokens_per_step: int
    dtype: torch.dtype

    @property
    def fullest(self) -> Moment:
        """The moment that needs most memory."""
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def peak_bytes(self) -> float:
        """Bytes at the fullest moment."""
        return self.fullest.bytes

    @property
    def flops_per_token(self) -> float:
        """All of a step's FLOPs, for one of its tokens."""
        return sum(self.flops.values())

    @property
    def weight_bytes(self) -> float:
        """What is there before the first step: both models, the targets' leaves, the factors."""
        return self.memory["teacher weights"] + self.memory["student weights"] + self.memory["factors"]

    def run(self, tokens: float, accelerator: str = "h100-80gb", devices: int = 1, utilisation: float = 0.4) -> Run:
        """Hours and energy for a budget of tokens.

        Args:
            utilisation: Share of the devices' peak FLOP/s that is reached.

        Raises:
            InputError: The accelerator is unknown, or the utilisation is no share.
        """
        if accelerator not in ACCELERATORS:
            raise InputError(f"accelerator: got {accelerator!r}, expected one of {', '.join(ACCELERATORS)}")
        if not 0 < utilisation <= 1:
            raise InputError(f"utilisation: got {utilisation}, expected a share above 0 and up to 1")
        device = ACCELERATORS[accelerator]
        peak = device.float32 if self.dtype == torch.float32 else device.bfloat16
        hours = tokens * self.flops_per_token / (peak * utilisation * devices) / 3600
        return Run(hours, hours * devices * device.watts / 1e3, self.peak_bytes <= device.memory)

    def rows(self) -> list[tuple[str, str]]:
        """Label and figure of each line of a table."""
        rows = [(f"{part}, MFLOP/token", f"{value / 1e6:,.1f}") for part, value in self.flops.items()]
        rows.append(("all, MFLOP/token", f"{self.flops_per_token / 1e6:,.1f}"))
        rows += [(f"{part}, GiB", f"{value / 2**30:,.2f}") for part, value in self.memory.items()]
        return [*rows, (f"peak, {self.fullest.name}, GiB", f"{self.peak_bytes / 2**30:,.2f}")]


def estimate(
    plan: Plan,
    *,
    micro_batch: int,
    sequence_length: int,
    accumulation: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    objective: Objective | None = None,
    parameterization: Mapping[str, str] | None = None,
    taps: Iterable[TapSpec] | None = None,
    recompute: Recompute = "nothing",
    every_n_layers: int = 1,
    optimizer_states: int = 2,
    chunk_elements: int | None = None,
    device: str = "cuda",
) -> Cost:
    """Cost of one run of `plan`, its sequences packed.

    Args:
        dtype: Of both models; factors and optimiser states are float32.
        objective: What is minimised, `Objective()` unless given. What has weight 0 costs nothing.
        parameterization: Kind by group, `projected` unless given.
        taps: What is compared, all of the plan's taps unless given.
        recompute, every_n_layers: Of the student's layers in backward (`CloneModel.activation_checkpointing_enable`).
        optimizer_states: Numbers that the optimiser keeps for each trained one; 2 for Adam, 1 for Muon.
        chunk_elements: Of the fused loss; by `device` unless given.
    """
    tokens = micro_batch * sequence_length
    counts = Counts(plan, parameterization or {}, objective or Objective(), plan.taps if taps is None else taps)
    checkpointed = 0 if recompute == "nothing" else math.ceil(counts.layers / every_n_layers)
    chunk = min(tokens * counts.vocabulary, chunk_elements_of(device) if chunk_elements is None else chunk_elements)
    memory = {
        **_weights(counts, dtype, optimizer_states),
        **_of_a_batch(counts, tokens, dtype),
        "activations": _activations(counts, tokens, dtype.itemsize, checkpointed, recompute == "elementwise"),
        "loss chunks": _loss_chunks(counts, dtype, chunk, block_elements(device)),
    }
    moments = _moments(memory, counts.vocabulary * plan.student_width * dtype.itemsize, accumulation)
    repeated = checkpointed / counts.layers if recompute == "all" else 0.0
    flops = _flops(counts, sequence_length, tokens * accumulation, repeated)
    return Cost(flops, memory, moments, tokens * accumulation, dtype)


def _flops(counts: Counts, length: int, tokens_per_step: int, repeated: float) -> dict[str, float]:
    """By part; `repeated` is the share of the layers whose forward pass runs twice."""
    plan = counts.plan
    d_t, d_s, vocabulary = plan.teacher_width, plan.student_width, counts.vocabulary
    # Q K^T and P V: each 2 * length * (heads * head_dim) a token, and a write's input has heads * head_dim channels.
    attention = sum(4.0 * length * r.inner for r in counts.matrices if counts.is_attention_output(r) and r.inner)
    trained = sum(counts.active(r, r.student_shape) for r in counts.matrices)
    inherited = sum(counts.active(r, r.student_shape) for r in counts.inherited)
    # The models' own heads see each sequence's last position only.
    last = 2.0 * vocabulary / length
    teacher = 2 * (sum(counts.active(r, r.teacher_shape) for r in counts.matrices) + inherited) + attention
    teacher = teacher + last * d_t if counts.teacher_runs else 0.0
    forward = 2 * (trained + inherited) + attention
    backward = 4 * trained + 2 * inherited + 2 * attention
    return {
        "teacher forward": teacher,
        "student forward": forward + last * d_s,
        "student backward": backward,
        "student recomputation": forward * repeated,
        "losses": 2.0 * vocabulary * ((d_t if counts.has_kl else 0) + 3 * d_s),
        "taps": counts.tap_flops(),
        "pull and push": sum(map(counts.generation, plan.of_kind("read", "write", "bias"))) / tokens_per_step,
    }


def _weights(counts: Counts, dtype: torch.dtype, optimizer_states: int) -> dict[str, float]:
    """Bytes of what is as large as the models, whatever the batch."""
    plan, width = counts.plan, dtype.itemsize
    wide = max(width, 4)
    leaves = len(counts.target_leaves()) * plan.teacher_width * plan.student_width
    with_gradient = sum(math.prod(r.student_shape) for r in plan.roles.values() if r.kind != "inherited") + leaves
    trained = counts.trained()
    return {
        "teacher weights": float(width * sum(math.prod(r.teacher_shape) for r in plan.roles.values())),
        "student weights": float(width * (plan.deployed_parameters + leaves)),
        "factors": float(wide * trained),
        "optimiser": float(wide * trained * optimizer_states),
        "gradients of the student": float(width * with_gradient),
        "gradients of the factors": float(wide * trained),
    }


def _of_a_batch(counts: Counts, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of the taps: the teacher's outputs, and the differences that wait for backward with their Z's gradients."""
    d_t, d_s = counts.plan.teacher_width, counts.plan.student_width
    targets = sum(counts.tap_width(tap, d_t) for tap in counts.taps)
    kept = sum(counts.tap_width(tap, d_t if counts.at_teacher_width(tap) else d_s) for tap in counts.taps)
    leaves = len(counts.target_leaves()) * d_t * d_s
    return {
        "targets": float(tokens * dtype.itemsize * targets),
        "kept by taps": float(dtype.itemsize * (tokens * kept + leaves)),
    }


def _loss_chunks(counts: Counts, dtype: torch.dtype, chunk: int, block: int) -> float:
    """Bytes of the fused loss: logits of both models, a block of each, and the gradient of the head's weight.

    The gradient in the logits is there once more in the models' dtype where that is another.
    """
    wide, models = max(dtype.itemsize, 4), 2 if counts.has_kl else 1
    narrow = dtype.itemsize if dtype.itemsize < wide else 0
    head = counts.vocabulary * counts.plan.student_width
    return float(chunk * (models * wide + narrow) + models * wide * min(chunk, block) + wide * head)


def _moments(memory: Mapping[str, float], head: float, accumulation: int) -> tuple[Moment, ...]:
    """The times of a step that may be the fullest: backward trades activations for gradients of the student, and the
    optimiser's step holds those of the factors. `head` is the bytes of the gradient of the head's weight."""
    resident = ("teacher weights", "student weights", "factors", "optimiser")
    at_loss = ["kept by taps", "activations", "loss chunks"]
    if accumulation > 1:  # an earlier micro-batch's
        at_loss.append("gradients of the student")

    def moment(name: str, parts: Sequence[str]) -> Moment:
        return Moment(name, {part: memory[part] for part in (*resident, *parts)})

    backward = moment("at the end of backward", ["gradients of the student"])
    if accumulation == 1:
        backward = Moment(backward.name, {**backward.parts, "gradient of the head": head})
    return (
        moment("before the student runs", ["targets"]),
        moment("in the loss", at_loss),
        backward,
        moment("in the optimiser's step", ["gradients of the factors"]),
    )


def _activations(counts: Counts, tokens: int, width: int, checkpointed: int, products_too: bool) -> float:
    """Bytes that autograd keeps of the student's layers, so many of them checkpointed, and outside of them.

    A norm keeps its input in float32, its normalised input and its output, which the reads behind it share; a read's
    output is kept by what follows it and a write's input by the write; a gated FFN keeps its activated gate too. A
    checkpointed layer keeps its input, and if so asked what its products and its attention gave; one of them at a time
    is whole again in backward.
    """
    d_s, layers = counts.plan.student_width, max(1, counts.layers)
    norm = d_s * (2 * width + max(width, 4))
    vectors = [r for r in counts.plan.of_kind("vector") if len(r.student_shape) == 1]
    within: float = sum(norm for r in vectors if r.layer is not None)
    kept: float = layers * d_s * width
    for role in counts.matrices:
        assert role.inner is not None
        experts = len(role.student_shape) == 3
        copies = counts.share(role) * role.student_shape[0] if experts else 1
        within += width * role.inner * copies
        if products_too and not experts:
            attended = role.inner if counts.is_attention_output(role) else 0
            kept += width * ((role.inner if role.kind == "read" else d_s) + attended)
    reads, writes = (
        sum(r.inner or 0 for r in counts.matrices if r.kind == kind and r.group in ("ffn", "experts"))
        for kind in ("read", "write")
    )
    within += width * writes if reads > writes else 0
    outside = norm * sum(r.layer is None for r in vectors) + width * (2 * d_s + counts.plan.teacher_width)
    layer = within / layers
    whole = counts.layers - checkpointed + (1 if checkpointed else 0)
    return tokens * (outside + layer * whole + kept / layers * checkpointed)
