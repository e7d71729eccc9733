"""Knowledge masking: what zeroing the teacher's most active FFN neurons costs both models (LRC, arXiv 2505.12781)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..hooks import hooked
from ..objective.evaluate import language_loss
from ..plan.roles import Plan, TapSpec
from ..precision import wide_dtype
from ..progress import track
from .passes import forward, token_batches

TOP_NEURONS = 50  # of the paper's masking test


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


@torch.no_grad()
def mask_test(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: Plan,
    blocks: Sequence[Any],
    *,
    top: int = TOP_NEURONS,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = False,
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
    activity = _activity(teacher, taps, blocks, progress)
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
        for neurons in track(masks, len(masks), "masking neurons", "pass", progress):
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


def masked(
    model: nn.Module, modules: Mapping[str, str], neurons: Iterable[tuple[str, int]]
) -> AbstractContextManager[None]:
    """Zero these (write, input index) neurons in every forward pass of `model`; `modules` has each write's module."""
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for name, index in neurons:
        indices[name].append(index)

    def without(which: list[int]) -> Callable[..., tuple[Any, Any]]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            index = torch.tensor(which, device=args[0].device)
            return (args[0].index_fill(-1, index, 0), *args[1:]), kwargs

        return hook

    return hooked([(model.get_submodule(modules[name]), without(which)) for name, which in indices.items()], "before")


def _shows_inputs(model: nn.Module, tap: TapSpec) -> bool:
    return isinstance(model.get_submodule(tap.module), (nn.Linear, Conv1D))


def _activity(
    model: PreTrainedModel, taps: Sequence[TapSpec], blocks: Sequence[Any], progress: bool
) -> dict[str, Tensor]:
    """Mean |input| of each tapped module, [w_in] float64 by tap name, over the tokens that it was given."""
    sums = {tap.name: torch.zeros(tap.inner, dtype=torch.float64) for tap in taps}
    counts: Counter[str] = Counter()

    def add(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] += rows.abs().sum(0, dtype=wide_dtype(rows.dtype)).cpu().double()
            counts[name] += len(rows)

        return hook

    with hooked([(model.get_submodule(tap.module), add(tap.name)) for tap in taps], "before"):
        for ids in token_batches(blocks, model.device, "ranking neurons", progress):
            forward(model, ids)
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
