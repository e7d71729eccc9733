"""How a model's tapped modules run, found by running them: what is compared must be the batch's tokens.

A tap is planned from shapes, and most planned modules run once in a forward pass, on one row for each token. Some run
several times; experts may run on every token once for each of them, or on the tokens that a router sent them; some are
never called at all. Which of these a module does is observed in two short passes over the same two sequences, swapped
in the second: rows that are the batch's tokens swap with them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..hooks import evaluating, floating, hooked
from ..plan.classify import make_plan
from ..plan.roles import Plan, TapSpec
from ..plan.tiny import tried_tiny_model

logger = logging.getLogger(__name__)

LENGTH = 8  # tokens of each of the two sequences


@dataclass(frozen=True)
class TapRuns:
    """How the module of a tap runs in a pass over n tokens: `calls` times, each time with `copies` * n rows of output.

    The rows are all n tokens in the batch's order, then all of them again for the next copy (the next expert).
    """

    calls: int = 1
    copies: int = 1


@dataclass(frozen=True)
class Probe:
    """What two passes showed. `left_out` says of each tap that can't be compared why not.

    changed: Modules whose output something changes in place after they have returned it.
    """

    runs: Mapping[str, TapRuns]
    left_out: Mapping[str, str]
    changed: frozenset[str]

    def comparable(self, taps: Iterable[TapSpec]) -> tuple[TapSpec, ...]:
        """Those of `taps` that can be compared. Of the others a warning says why they can't."""
        taps = list(taps)
        found = tuple(tap for tap in taps if tap.name in self.runs)
        if reasons := self.reasons(taps):
            logger.warning("%d taps are not compared: %s", len(taps) - len(found), reasons)
        return found

    def reasons(self, taps: Iterable[TapSpec]) -> str:
        """Which of these taps are left out and why, in one line, layers together; "" for none."""
        places: defaultdict[str, set[str]] = defaultdict(set)
        for tap in taps:
            if tap.name in self.left_out:
                places[self.left_out[tap.name]].add(tap.module.partition(f".{tap.layer}.")[2])
        return "; ".join(f"{', '.join(f'`{p}`' for p in sorted(names))} ({why})" for why, names in places.items())


def foresee_taps(plan: Plan) -> str:
    """Which of a plan's taps will not be compared and why, tried on a tiny model of its layout; "" where all will.

    Nothing is known, and "" returned, where no tiny model can be made of the layout; loading the teacher shows it then.
    """
    model = tried_tiny_model(plan.teacher_config)
    if model is None:
        return ""
    try:
        taps = make_plan(model.config, model.config.hidden_size // 2).taps
    except InputError:  # a width that only the tiny sizes refuse
        return ""
    return probe_taps(model, taps, model.config.hidden_size).reasons(taps)


@dataclass
class _Pass:
    """What one pass showed: outputs by tap name, each call's, and every watched output as it was when it was made."""

    outputs: defaultdict[str, list[Tensor | None]] = field(default_factory=lambda: defaultdict(list))
    made: list[tuple[str, Tensor, int]] = field(default_factory=list)


@torch.no_grad()
def probe_taps(model: PreTrainedModel, taps: Iterable[TapSpec], width: int) -> Probe:
    """Run `model` twice on a few tokens and see how the modules of `taps` run.

    Args:
        width: The model's residual width, that of the writes' outputs.
    """
    taps = list(taps)
    ids = torch.randint(model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    first, swapped = (_run(model, taps, width, each.to(model.device)) for each in (ids, ids.flip(0)))
    runs: dict[str, TapRuns] = {}
    left_out: dict[str, str] = {}
    for tap in taps:
        found = _runs(first.outputs[tap.name], swapped.outputs[tap.name])
        if isinstance(found, str):
            left_out[tap.name] = found
        else:
            runs[tap.name] = found
    changed = frozenset(name for name, output, version in first.made if output._version != version)
    return Probe(runs, left_out, changed)


def _run(model: PreTrainedModel, taps: list[TapSpec], width: int, ids: Tensor) -> _Pass:
    seen, by_module = _Pass(), defaultdict(list)
    for tap in taps:
        by_module[tap.module].append(tap)

    def hook_of(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            tensor = floating(output)
            if tensor is not None:
                seen.made.append((name, tensor, tensor._version))
            for tap in by_module[name]:
                expected = width if tap.kind == "write" else tap.inner
                shown = floating(output, expected)
                seen.outputs[tap.name].append(None if shown is None else shown.reshape(-1, expected).clone())

        return hook

    owners = [(m, hook_of(name)) for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    with evaluating(model), hooked(owners, "after"):
        model(input_ids=ids, use_cache=False)
    return seen


def _runs(first: list[Tensor | None], swapped: list[Tensor | None]) -> TapRuns | str:
    """How a module runs, from its outputs in both passes, or why it can't be compared."""
    if not first or not swapped:
        return "never called: another module uses its weight"
    shapes = {None if output is None else output.shape for output in first + swapped}
    if None in shapes:
        return "no tensor of its weight's width among its results"
    rows = len(first[0]) if first[0] is not None else 0
    copies, rest = divmod(rows, 2 * LENGTH)
    if len(first) != len(swapped) or len(shapes) > 1 or rest:
        return "its rows are not the batch's tokens"
    for a, b in zip(first, swapped, strict=True):
        assert a is not None and b is not None
        a = a.double().cpu()
        turned = b.double().cpu().view(copies, 2, LENGTH, -1).flip(1).reshape(a.shape)
        # A half: far above what other shapes of a product round, far below the 2 of rows that have nothing in common.
        if not (turned - a).square().sum() <= 0.5 * (a - a.mean(0)).square().sum():
            return "its rows are not the batch's tokens"
    return TapRuns(len(first), copies)
