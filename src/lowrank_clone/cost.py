"""What a run will cost, before anything runs: FLOPs, memory, hours and energy, from the plan alone.

FLOPs are those of the matrix products, two per multiply-add, as `torch.utils.flop_counter` counts them: exact where
every layer attends to the whole sequence by explicit products (`attn_implementation="eager"`); kernels that skip masked
blocks do fewer. Memory is the sum of the tensors that are alive at the fullest moment; allocators and libraries come on
top.

Axes: n = micro_batch * sequence_length tokens, G micro-batches a step, V vocabulary, d_T and d_S the residual widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from .errors import InputError
from .objective.lm_kl import block_elements, chunk_elements_of
from .plan.roles import Plan, Role, TapSpec

# What of a student's layer runs twice.
Recompute = Literal["nothing", "elementwise", "all"]


@dataclass(frozen=True)
class Accelerator:
    """One device, by its vendor's data sheet: dense peak FLOP/s by dtype, memory in bytes, board power in watts."""

    name: str
    bfloat16: float
    float32: float
    memory: float
    watts: float


# NVIDIA's and AMD's data sheets; dense figures, without sparsity.
ACCELERATORS = {
    device.name: device
    for device in (
        Accelerator("a100-40gb", 312e12, 19.5e12, 40e9, 400),
        Accelerator("a100-80gb", 312e12, 19.5e12, 80e9, 400),
        Accelerator("h100-80gb", 989e12, 67e12, 80e9, 700),
        Accelerator("h200-141gb", 989e12, 67e12, 141e9, 700),
        Accelerator("l40s-48gb", 362e12, 91.6e12, 48e9, 350),
        Accelerator("rtx4090-24gb", 165.2e12, 82.6e12, 24e9, 450),
        Accelerator("mi300x-192gb", 1307e12, 163.4e12, 192e9, 750),
    )
}


@dataclass(frozen=True)
class Run:
    """A budget of tokens on accelerators of one kind. Energy is the boards' alone, at full power."""

    hours: float
    kilowatt_hours: float
    fits: bool


@dataclass(frozen=True)
class Cost:
    """FLOPs per token and bytes, each by part.

    `memory` lists everything, `peak_bytes` is what is alive at once: gradients are not all there while activations are.
    """

    flops: Mapping[str, float]
    memory: Mapping[str, float]
    peak_bytes: float
    tokens_per_step: int
    dtype: torch.dtype

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
        return [*rows, ("peak, GiB", f"{self.peak_bytes / 2**30:,.2f}")]


def estimate(
    plan: Plan,
    *,
    micro_batch: int,
    sequence_length: int,
    accumulation: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    parameterization: Mapping[str, str] | None = None,
    attn_out_tap: Literal["student", "teacher"] = "student",
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
        parameterization: Kind by group, `projected` unless given.
        taps: What is compared, all of the plan's taps unless given.
        recompute, every_n_layers: Of the student's layers in backward (`CloneModel.activation_checkpointing_enable`).
        optimizer_states: Numbers that the optimiser keeps for each trained one; 2 for Adam, 1 for Muon.
        chunk_elements: Of the fused loss; by `device` unless given.
    """
    tokens = micro_batch * sequence_length
    sizes = _Sizes(plan, parameterization or {}, attn_out_tap, list(plan.taps if taps is None else taps))
    if chunk_elements is None:
        chunk_elements = chunk_elements_of(device)
    checkpointed = 0 if recompute == "nothing" else math.ceil(sizes.layers / every_n_layers)
    activations = _activations(sizes, tokens, dtype.itemsize, checkpointed, products_too=recompute == "elementwise")
    memory, peak = _memory(sizes, tokens, accumulation, dtype, activations, optimizer_states, chunk_elements, device)
    repeated = checkpointed / sizes.layers if recompute == "all" else 0.0
    flops = _flops(sizes, sequence_length, tokens * accumulation, repeated)
    return Cost(flops, memory, peak, tokens * accumulation, dtype)


def _flops(sizes: _Sizes, length: int, tokens_per_step: int, repeated: float) -> dict[str, float]:
    """By part; `repeated` is the share of the layers whose forward pass runs twice."""
    plan = sizes.plan
    d_t, d_s, vocabulary = plan.teacher_width, plan.student_width, sizes.vocabulary
    # Q K^T and P V: each 2 * length * (heads * head_dim) a token, and a write's input has heads * head_dim channels.
    attention = sum(4.0 * length * r.inner for r in sizes.matrices if sizes.is_attention_output(r) and r.inner)
    trained = sum(sizes.active(r, r.student_shape) for r in sizes.matrices)
    inherited = sum(sizes.active(r, r.student_shape) for r in sizes.inherited)
    # The models' own heads see each sequence's last position only.
    last = 2.0 * vocabulary / length
    teacher = 2 * (sum(sizes.active(r, r.teacher_shape) for r in sizes.matrices) + inherited) + attention
    forward = 2 * (trained + inherited) + attention
    backward = 4 * trained + 2 * inherited + 2 * attention
    return {
        "teacher forward": teacher + last * d_t,
        "student forward": forward + last * d_s,
        "student backward": backward,
        "student recomputation": forward * repeated,
        "losses": 2.0 * vocabulary * (d_t + 3 * d_s),
        "taps": sizes.tap_flops(),
        "pull and push": sum(map(sizes.generation, plan.of_kind("read", "write", "bias"))) / tokens_per_step,
    }


class _Sizes:
    """Counts that FLOPs and memory share."""

    def __init__(self, plan: Plan, kinds: Mapping[str, str], attn_out_tap: str, taps: list[TapSpec]) -> None:
        self.plan, self.kinds, self.taps, self.attn_out_tap = plan, kinds, taps, attn_out_tap
        config = plan.student_config.to_dict()
        self.vocabulary = int(plan.student_config.vocab_size)
        self._chosen = config.get("num_experts_per_tok") or 1
        self.layers = len({r.layer for r in plan.roles.values() if r.layer is not None})
        # The matrices of the layers; embeddings are looked up, and the head belongs to the losses.
        self.matrices = [r for r in plan.of_kind("read", "write") if r.group not in ("embedding", "head")]
        # Not the experts' biases, which are matrices in shape only.
        experts = {r.module for r in self.matrices if len(r.student_shape) == 3}
        self.inherited = [r for r in plan.of_kind("inherited") if len(r.student_shape) > 1 and r.module not in experts]
        self._attention_outputs = {r.name for r in self.matrices if r.group == "attention" and r.kind == "write"}

    def is_attention_output(self, role: Role) -> bool:
        return role.name in self._attention_outputs

    def share(self, role: Role) -> float:
        """Share of the role's numbers that a token meets: of raw expert tensors, that of the experts it is sent to."""
        return self._chosen / role.student_shape[0] if len(role.student_shape) == 3 else 1.0

    def active(self, role: Role, shape: tuple[int, ...]) -> float:
        return math.prod(shape) * self.share(role)

    def kind(self, role: Role) -> str:
        return self.kinds.get(role.group, "projected")

    def at_teacher_width(self, tap: TapSpec) -> bool:
        return tap.kind == "write" and tap.group == "attention" and self.attn_out_tap == "teacher"

    def tap_flops(self) -> float:
        """A write's target is projected by its Z, forward and for Z's gradient; at teacher width, the student's input
        goes through the teacher's matrix, forward and backward."""
        d_t, d_s = self.plan.teacher_width, self.plan.student_width
        return sum(
            4.0 * d_t * (tap.inner if self.at_teacher_width(tap) else d_s) for tap in self.taps if tap.kind == "write"
        )

    def tap_width(self, tap: TapSpec, width: int) -> int:
        """Channels of a tap in a model of this residual width."""
        return width if tap.kind == "write" else tap.inner

    def generation(self, role: Role) -> float:
        """Pull and push of one matrix, once a step."""
        kind = self.kind(role)
        if kind == "projected":
            return 4.0 * math.prod(role.teacher_shape) * self.plan.student_width
        if kind == "core" and role.inner is not None:
            rank = min(role.inner, self.plan.teacher_width)
            reflections = 4.0 * role.inner * rank - 2.0 * rank**2
            return 2 * reflections * math.prod(role.student_shape) / role.inner
        return 0.0

    def trained(self) -> int:
        """Numbers that the optimiser sees."""
        own = sum(self.plan.trained(role, self.kind(role)) for role in self.plan.roles.values())
        # A write that is trained itself leaves its Z to its tap's target.
        left = sum(self.kind(self.plan.roles[tap.name]) != "projected" for tap in self.target_leaves())
        return own + left * self.plan.teacher_width * self.plan.student_width

    def target_leaves(self) -> list[TapSpec]:
        return [tap for tap in self.taps if tap.kind == "write" and not self.at_teacher_width(tap)]


def _memory(
    sizes: _Sizes,
    tokens: int,
    accumulation: int,
    dtype: torch.dtype,
    activations: float,
    optimizer_states: int,
    chunk_elements: int,
    device: str,
) -> tuple[dict[str, float], float]:
    plan, width = sizes.plan, dtype.itemsize
    d_t, d_s = plan.teacher_width, plan.student_width
    wide = max(width, 4)
    leaves = len(sizes.target_leaves()) * d_t * d_s
    with_gradient = sum(math.prod(r.student_shape) for r in plan.roles.values() if r.kind != "inherited") + leaves
    trained = sizes.trained()
    targets = tokens * width * sum(sizes.tap_width(tap, d_t) for tap in sizes.taps)
    kept = tokens * width * sum(sizes.tap_width(tap, d_t if sizes.at_teacher_width(tap) else d_s) for tap in sizes.taps)
    head = sizes.vocabulary * d_s
    chunk = min(tokens * sizes.vocabulary, chunk_elements)
    # Logits of both models and a block of each, and the gradient in the models' dtype where that is another.
    chunks = chunk * (2 * wide + (width if width < wide else 0)) + 2 * wide * min(chunk, block_elements(device))
    memory = {
        "teacher weights": float(width * sum(math.prod(r.teacher_shape) for r in plan.roles.values())),
        "student weights": float(width * (plan.deployed_parameters + leaves)),
        "factors": float(wide * trained),
        "optimiser": float(wide * trained * optimizer_states),
        "gradients of the student": float(width * with_gradient),
        "gradients of the factors": float(wide * trained),
        "targets": float(targets),
        "kept by taps": float(kept + leaves * width),
        "activations": float(activations),
        "loss chunks": float(chunks + head * wide),
    }
    before = memory["targets"]
    forward = memory["kept by taps"] + memory["activations"]
    gradients = memory["gradients of the student"]
    loss = forward + memory["loss chunks"] + (gradients if accumulation > 1 else 0)
    # Backward trades activations for gradients; the step holds the gradients of the factors.
    moments = (before, loss, gradients + (0 if accumulation > 1 else head * width), memory["gradients of the factors"])
    held = sum(memory[part] for part in ("teacher weights", "student weights", "factors", "optimiser"))
    return memory, held + max(moments)


def _activations(sizes: _Sizes, tokens: int, width: int, checkpointed: int, products_too: bool) -> float:
    """Bytes that autograd keeps of the student's layers, so many of them checkpointed, and outside of them.

    A norm keeps its input in float32, its normalised input and its output, which the reads behind it share; a read's
    output is kept by what follows it and a write's input by the write; a gated FFN keeps its activated gate too. A
    checkpointed layer keeps its input, and if so asked what its products and its attention gave; one of them at a time
    is whole again in backward.
    """
    d_s, layers = sizes.plan.student_width, max(1, sizes.layers)
    norm = d_s * (2 * width + max(width, 4))
    vectors = [r for r in sizes.plan.of_kind("vector") if len(r.student_shape) == 1]
    within: float = sum(norm for r in vectors if r.layer is not None)
    kept: float = layers * d_s * width
    for role in sizes.matrices:
        assert role.inner is not None
        experts = len(role.student_shape) == 3
        copies = sizes.share(role) * role.student_shape[0] if experts else 1
        within += width * role.inner * copies
        if products_too and not experts:
            attended = role.inner if sizes.is_attention_output(role) else 0
            kept += width * ((role.inner if role.kind == "read" else d_s) + attended)
    reads, writes = (
        sum(r.inner or 0 for r in sizes.matrices if r.kind == kind and r.group in ("ffn", "experts"))
        for kind in ("read", "write")
    )
    within += width * writes if reads > writes else 0
    outside = norm * sum(r.layer is None for r in vectors) + width * (2 * d_s + sizes.plan.teacher_width)
    layer = within / layers
    whole = sizes.layers - checkpointed + (1 if checkpointed else 0)
    return tokens * (outside + layer * whole + kept / layers * checkpointed)
