"""What a student kept of its teacher: activations, the rank of its residual stream, its factors, its neurons.

Measured on blocks of text (rows with `input_ids`, all of one length) with stock models and hooks that are gone
afterwards. Which modules are compared, which are the layers and where neurons can be seen all comes from the plan.

Axes: n tokens, d a residual width (`d_T` or `d_S`), w the width of a tap.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .architecture import Groups
from .bases import Projected
from .errors import InputError
from .evaluate import batches, evaluating, language_loss
from .factors import Factors
from .parameterize import TARGET
from .plan import Plan, TapSpec
from .taps import head_input, tap_output

TOP_NEURONS = 50  # of the paper's masking test
BATCH_TOKENS = 1024  # of one forward pass, whose tapped activations are alive together


@dataclass(frozen=True)
class TapError:
    """`error` is ||s - t||^2 / ||t||^2 over all tokens, or None where the two can't be compared."""

    tap: TapSpec
    error: float | None

    @property
    def place(self) -> str:
        """The tapped module's name inside its layer, which is the same in every layer."""
        return place_in_layer(self.tap.module, self.tap.layer)


@dataclass(frozen=True)
class StreamRank:
    """Effective ranks of the residual stream after `layer` layers (0: what the first layer is given)."""

    layer: int
    teacher: float
    student: float


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a trained matrix, descending. `is_projection` tells a Z [d_T, d_S] from a matrix that is
    trained itself (`dense`, `core`). `place` is its module's name inside its layer."""

    factor: str
    layer: int | None
    place: str
    is_projection: bool
    values: tuple[float, ...]

    @property
    def condition(self) -> float:
        """Largest over smallest singular value; infinite for a rank-deficient matrix."""
        return self.values[0] / self.values[-1] if self.values[-1] > 0 else math.inf

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised squares, at most the number of values."""
        return entropy_rank(torch.tensor(self.values, dtype=torch.float64).square())


@dataclass(frozen=True)
class MaskedLosses:
    """Next-token losses of one model, nats per token: untouched, without the top neurons, without random ones."""

    plain: float
    top: float
    random: tuple[float, ...]


@dataclass(frozen=True)
class MaskTest:
    """The masking test on one text of `tokens` predicted tokens. `neurons` are (name of the FFN write, input index)."""

    neurons: tuple[tuple[str, int], ...]
    candidates: int
    tokens: int
    teacher: MaskedLosses
    student: MaskedLosses


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect_pair` measured on `tokens` tokens; no `masking` where no neuron can be observed.

    `start_errors` are the student's before training, where they were measured too.
    """

    tokens: int
    teacher_width: int
    student_width: int
    errors: tuple[TapError, ...]
    ranks: tuple[StreamRank, ...]
    spectra: tuple[Spectrum, ...]
    masking: MaskTest | None
    start_errors: tuple[TapError, ...] = ()


def inspect_pair(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    factors: Factors,
    blocks: Sequence[Any],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[str], Any] = lambda step: None,
) -> Inspection:
    """All four diagnostics of one student.

    Args:
        blocks: Rows with `input_ids`, all of one length; the masking test takes the first `BATCH_TOKENS` tokens.
        seeds: Of the random neurons, one draw each.
        progress: Told what is being measured.
    """
    length = len(blocks[0]["input_ids"])
    text = [blocks[i] for i in range(min(len(blocks), rows_per_batch(length)))]
    progress("activations of both models")
    errors = relative_errors(teacher, student, plan, factors, blocks)
    progress("rank of the residual stream")
    ranks = stream_ranks(teacher, student, plan, blocks)
    progress("singular values of the factors")
    spectra = factor_spectra(factors, plan)
    progress("losses with masked neurons")
    masking = mask_test(teacher, student, plan, text, seeds=seeds)
    tokens = len(blocks) * length
    return Inspection(tokens, plan.teacher_width, plan.student_width, errors, ranks, spectra, masking)


@torch.no_grad()
def relative_errors(
    teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, factors: Factors, blocks: Sequence[Any]
) -> tuple[TapError, ...]:
    """Relative squared error of every tap of the plan, whatever taps were trained on.

        error = sum_i || s_i - t_i ||^2 / sum_i || t_i ||^2        over the n tokens; t_i Z for t_i at a write

    A write that has no Z any more (a baseline, or trained at teacher width and then `dense`) is not compared, nor is a
    module that shows no such output in both models. A target that is zero throughout has no relative error either.
    """
    compared = _Errors(write_projections(factors, plan))
    taps = [tap for tap in plan.taps if tap.kind == "read" or tap.name in compared.projections]
    for ids in _batches(blocks, student.device):
        with _watch(teacher, taps, plan.teacher_width, compared.keep):
            _forward(teacher, ids)
        with _watch(student, taps, plan.student_width, compared.compare):
            _forward(student, ids)
        compared.drop_kept()
    return tuple(TapError(tap, compared.error(tap.name)) for tap in plan.taps)


class _Errors:
    """Sums of squares by tap name. A tap whose outputs do not pair up, token by token, is left without an error."""

    def __init__(self, projections: Mapping[str, Tensor]) -> None:
        self.projections = projections
        self._targets: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._missed: defaultdict[str, float] = defaultdict(float)
        self._total: defaultdict[str, float] = defaultdict(float)
        self._unpaired: set[str] = set()

    def keep(self, tap: TapSpec, output: Tensor) -> None:
        self._targets[tap.name].append(output)

    def compare(self, tap: TapSpec, output: Tensor) -> None:
        target = self._targets[tap.name].pop(0) if self._targets[tap.name] else output[:0]
        if len(target) != len(output):  # experts that were routed other tokens
            self._unpaired.add(tap.name)
            return
        output, target = output.to(_wide(output)), target.to(_wide(output))
        if tap.kind == "write":
            target = target @ self.projections[tap.name].to(target.dtype)
        self._missed[tap.name] += (output - target).square().sum().item()
        self._total[tap.name] += target.square().sum().item()

    def drop_kept(self) -> None:
        self._unpaired |= {name for name, left in self._targets.items() if left}
        self._targets.clear()

    def error(self, name: str) -> float | None:
        known = name not in self._unpaired and self._total[name] > 0
        return self._missed[name] / self._total[name] if known else None


def write_projections(factors: Factors, plan: Plan) -> dict[str, Tensor]:
    """The Z [d_T, d_S] of each write that has one: its target's leaf's factor, else its projected weight's."""
    links = {link.name: link for link in factors.links}
    found: dict[str, Tensor] = {}
    for role in plan.of_kind("write"):
        link = links.get(role.name + TARGET, links[role.name])
        if link.name.endswith(TARGET) or isinstance(link.basis, Projected):
            found[role.name] = factors[link.factor].detach()
    return found


@torch.no_grad()
def stream_ranks(
    teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, blocks: Sequence[Any]
) -> tuple[StreamRank, ...]:
    """Effective rank of the residual stream before the first layer and after each one, in both models.

    A layer is a block that writes to the stream. Each rank is at most min(n - 1, d).
    """
    writes = [role.name for role in plan.of_kind("write")]
    layers = [name for name in Groups(student).blocks if any(write.startswith(name + ".") for write in writes)]
    theirs = _stream_ranks(teacher, layers, plan.teacher_width, blocks)
    ours = _stream_ranks(student, layers, plan.student_width, blocks)
    return tuple(StreamRank(i, *pair) for i, pair in enumerate(zip(theirs, ours, strict=True)))


def effective_rank(rows: Tensor) -> float:
    """RED's effective rank (arXiv 2605.29327) of `rows` [n, d]: each row minus the mean row, then at unit length.

    exp(- sum_j l_j log l_j),   l the eigenvalues of 1/n sum_i c_i c_i^T,   c_i = (x_i - mean) / || x_i - mean ||
    """
    rows = rows.double()
    return entropy_rank(torch.linalg.eigvalsh(_covariance(rows, rows.mean(0))))


def entropy_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of non-negative numbers divided by their sum; 0 if they are all 0."""
    values = eigenvalues.clamp(min=0)
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


@torch.no_grad()
def factor_spectra(factors: Factors, plan: Plan) -> tuple[Spectrum, ...]:
    """Singular values of every trained matrix, in the plan's order. Vectors and stacks of experts are left out."""
    projections = {link.factor for link in factors.links if isinstance(link.basis, Projected)}
    order = {name: i for i, name in enumerate(plan.roles)}
    spectra = []
    for name in sorted(factors, key=lambda name: order[name.removesuffix(TARGET)]):
        role, factor = plan.roles[name.removesuffix(TARGET)], factors[name].detach()
        if factor.ndim != 2:
            continue
        place = role.module if role.layer is None else place_in_layer(role.module, role.layer)
        values = tuple(torch.linalg.svdvals(factor).tolist())
        is_projection = name in projections or name.endswith(TARGET)
        spectra.append(Spectrum(name, role.layer, place, is_projection, values))
    return tuple(spectra)


@torch.no_grad()
def mask_test(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    blocks: Sequence[Any],
    *,
    top: int = TOP_NEURONS,
    seeds: Sequence[int] = (0, 1, 2),
) -> MaskTest | None:
    """The neuron masking test of LRC (arXiv 2505.12781): do teacher and student keep knowledge in the same neurons?

    Neurons are the inputs of FFN writes. The `top` ones by mean |activation| in the teacher over this text, ranked over
    all layers together, are set to zero in both models, which have the same inner widths; for comparison, random other
    neurons, as many in each layer. No more than half of all neurons are masked. If the student took the knowledge over,
    the top ones hurt both models and the random ones neither.

    Returns:
        None if no FFN write shows its inputs, as raw expert tensors do not.
    """
    taps = [tap for tap in plan.taps if tap.kind == "write" and tap.group == "ffn" and _shows_inputs(teacher, tap)]
    if not taps:
        return None
    activity = _activity(teacher, taps, blocks)
    flat = torch.cat([activity[tap.name] for tap in taps])
    owners = [(tap.name, index) for tap in taps for index in range(len(activity[tap.name]))]
    ranked = flat.argsort(descending=True, stable=True).tolist()
    chosen = [owners[i] for i in ranked[: min(top, len(ranked) // 2)]]
    widths = {tap.name: len(activity[tap.name]) for tap in taps}
    masks = [chosen, *(_random_like(chosen, widths, seed) for seed in seeds)]
    modules = {tap.name: tap.module for tap in taps}
    plain = language_loss(teacher, blocks)

    def losses(model: PreTrainedModel, untouched: float) -> MaskedLosses:
        found = []
        for neurons in masks:
            with masked(model, modules, neurons):
                found.append(language_loss(model, blocks).loss)
        return MaskedLosses(untouched, found[0], tuple(found[1:]))

    return MaskTest(
        tuple(chosen),
        len(owners),
        plain.tokens,
        losses(teacher, plain.loss),
        losses(student, language_loss(student, blocks).loss),
    )


@contextmanager
def masked(model: nn.Module, modules: Mapping[str, str], neurons: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Zero these (write, input index) neurons in every forward pass of `model`; `modules` has each write's module."""
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for name, index in neurons:
        indices[name].append(index)

    def without(which: list[int]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0].index_fill(-1, torch.tensor(which, device=args[0].device), 0), *args[1:])

        return hook

    with ExitStack() as hooks:
        for name, which in indices.items():
            hooks.callback(model.get_submodule(modules[name]).register_forward_pre_hook(without(which)).remove)
        yield


def place_in_layer(module: str, layer: int) -> str:
    """`module`'s name below its layer: `model.layers.3.mlp.up_proj` in layer 3 is `mlp.up_proj`."""
    return module.partition(f".{layer}.")[2] or module


def rows_per_batch(length: int) -> int:
    """Blocks of this length in one forward pass."""
    return max(1, BATCH_TOKENS // length)


def _batches(blocks: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
    return batches(blocks, rows_per_batch(len(blocks[0]["input_ids"])), device)


def _forward(model: PreTrainedModel, ids: Tensor) -> None:
    """Run up to the LM head, in eval mode."""
    with evaluating(model), head_input(model):
        model(input_ids=ids, use_cache=False)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@contextmanager
def _watch(
    model: nn.Module, taps: Iterable[TapSpec], width: int, see: Callable[[TapSpec, Tensor], None]
) -> Iterator[None]:
    """Call `see(tap, output [n, w])` whenever a tapped module runs and shows an output of the expected width."""

    def hook_of(tap: TapSpec) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            try:
                shown = tap_output(tap, width, output)
            except InputError:
                return
            see(tap, shown)

        return hook

    with ExitStack() as hooks:
        for tap in taps:
            hooks.callback(model.get_submodule(tap.module).register_forward_hook(hook_of(tap)).remove)
        yield


@contextmanager
def _watch_stream(
    model: nn.Module, layers: Sequence[str], width: int, see: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `see(0, rows [n, d])` with what the first layer is given, and `see(i, rows)` with what layer i returns."""

    def pick(values: Iterable[Any]) -> Tensor:
        floats = (x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.shape[-1] == width)
        return next(floats).reshape(-1, width)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(0, pick([*args, *kwargs.values()]))

    def after(index: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: see(index, pick(output if isinstance(output, tuple) else (output,)))

    with ExitStack() as hooks:
        first = model.get_submodule(layers[0])
        hooks.callback(first.register_forward_pre_hook(before, with_kwargs=True).remove)
        for index, name in enumerate(layers, start=1):
            hooks.callback(model.get_submodule(name).register_forward_hook(after(index)).remove)
        yield


def _stream_ranks(model: PreTrainedModel, layers: Sequence[str], width: int, blocks: Sequence[Any]) -> list[float]:
    """Two passes: the mean row of each place, then the covariance of its rows around it. Both in float64."""
    # On CUDA they stay there; other accelerators have no float64.
    home = model.device if model.device.type == "cuda" else torch.device("cpu")
    sums = torch.zeros(len(layers) + 1, width, dtype=torch.float64, device=home)
    counts = [0] * len(sums)

    def add_mean(place: int, rows: Tensor) -> None:
        sums[place] += rows.to(home).double().sum(0)
        counts[place] += len(rows)

    with _watch_stream(model, layers, width, add_mean):
        for ids in _batches(blocks, model.device):
            _forward(model, ids)
    means = sums / torch.tensor(counts, dtype=torch.float64, device=home).clamp(min=1)[:, None]
    squares = torch.zeros(len(sums), width, width, dtype=torch.float64, device=home)

    def add_square(place: int, rows: Tensor) -> None:
        squares[place] += _covariance(rows.to(_wide(rows)), means[place].to(rows.device, _wide(rows))).to(home)

    with _watch_stream(model, layers, width, add_square):
        for ids in _batches(blocks, model.device):
            _forward(model, ids)
    return [entropy_rank(torch.linalg.eigvalsh(square)) for square in squares]


def _covariance(rows: Tensor, mean: Tensor) -> Tensor:
    """Sum over rows [n, d] of c c^T, c the row minus `mean` at unit length; a row that is the mean adds nothing."""
    centred = torch.nn.functional.normalize(rows - mean, dim=-1)
    return centred.T @ centred


def _shows_inputs(model: nn.Module, tap: TapSpec) -> bool:
    return isinstance(model.get_submodule(tap.module), (nn.Linear, Conv1D))


def _activity(model: PreTrainedModel, taps: Sequence[TapSpec], blocks: Sequence[Any]) -> dict[str, Tensor]:
    """Mean |input| of each tapped module, [w_in] float64 by tap name, over the tokens that it was given."""
    sums = {tap.name: torch.zeros(tap.inner, dtype=torch.float64) for tap in taps}
    counts: Counter[str] = Counter()

    def add(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] += rows.abs().sum(0, dtype=_wide(rows)).cpu().double()
            counts[name] += len(rows)

        return hook

    with ExitStack() as hooks:
        for tap in taps:
            hooks.callback(model.get_submodule(tap.module).register_forward_pre_hook(add(tap.name)).remove)
        for ids in _batches(blocks, model.device):
            _forward(model, ids)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _random_like(chosen: Sequence[tuple[str, int]], widths: Mapping[str, int], seed: int) -> list[tuple[str, int]]:
    """As many neurons of each write as `chosen` has, drawn from its other ones, as far as there are others."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[tuple[str, int]] = []
    for name, count in Counter(name for name, _ in chosen).items():
        taken = {index for owner, index in chosen if owner == name}
        others = [i for i in torch.randperm(widths[name], generator=generator).tolist() if i not in taken]
        drawn += [(name, index) for index in others[:count]]
    return drawn
