"""Evaluation: the terms of the loss as means over all tokens of a data set, in any number of batches and processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..errors import InputError
from ..model import CloneModel
from ..objective.output import CloneOutput
from ..objective.tokens import count_tokens
from .batches import new_batches
from .processes import add_up


def evaluate_set(trainer: Trainer, clone: CloneModel, dataloader: Any, taps: bool) -> tuple[dict[str, float], int]:
    """What `evaluate_losses` measures on a data set that a trainer reads, and how many rows it has in all processes.

    Raises:
        InputError: As `evaluate_losses`.
    """
    trainer.callback_handler.eval_dataloader = dataloader
    unmeasured, rows = clone.needs_targets, 0

    def read() -> Iterator[Mapping[str, Tensor]]:
        nonlocal rows
        for batch, new in new_batches(trainer, dataloader, dataloader.dataset, clone.objective.mask_scope):
            rows += new
            yield batch
            trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)

    with torch.random.fork_rng(devices=[]):  # evaluating or not must not change what is trained
        if unmeasured:  # before the first step: divided by the size of this data set's own targets
            clone.measure_targets(
                batch for batch, _ in new_batches(trainer, dataloader, dataloader.dataset, clone.objective.mask_scope)
            )
        losses = evaluate_losses(clone, read(), partial(add_up, trainer), taps=taps)
    if unmeasured and clone.target_squares is not None:
        clone.target_squares.mean = None
    return losses, int(add_up(trainer, torch.tensor(rows)))


@torch.no_grad()
def evaluate_losses(
    clone: CloneModel,
    batches: Iterable[Mapping[str, Tensor]],
    add_up: Callable[[Tensor], Tensor],
    taps: bool = False,
) -> dict[str, float]:
    """`loss`, `lm`, `kl` and `clone` as far as they are in the objective, each a mean over its tokens; `perplexity`.

    Args:
        batches: On the clone's device, as many in each process.
        add_up: Sums a tensor over all processes.
        taps: Whether to add `relative/<parameter>`, each tap's ||s - t||^2 / ||t||^2 over all tokens. A tap whose
            targets are all zero has none.

    Raises:
        InputError: There is no batch, or no token to predict.
    """
    mode = clone.training
    clone.eval()
    names: list[str] = []
    sums: list[Tensor] = []
    compared: list[str] = []
    pairs: list[Tensor] = []  # [taps, 2]: squared difference and square, each summed over tokens
    try:
        for batch in batches:
            output = clone(**batch)
            terms, (targets, positions) = terms_of(output), count_tokens(batch, clone.objective.mask_scope)
            names = list(terms)
            if taps and output.relative:
                compared = list(output.relative)
                pairs.append(torch.stack(list(output.relative.values())) * positions)
            weighed = [value * (targets if name == "lm" else positions) for name, value in terms.items()]
            sums.append(torch.stack([*weighed, targets.to(weighed[0].dtype), positions.to(weighed[0].dtype)]))
    finally:
        clone.train(mode)
    if not sums:
        raise InputError("evaluation: got a data set without a row, expected at least one")
    *totals, targets, positions = add_up(torch.stack(sums).cpu().double().sum(0)).tolist()
    if not targets:
        raise InputError("evaluation: got no token to predict, expected rows of two tokens or more that are not masked")
    means = {
        name: total / max(targets if name == "lm" else positions, 1) for name, total in zip(names, totals, strict=True)
    }
    goal = clone.objective
    weights = {"lm": goal.lm_weight, "kl": goal.kl_weight, "clone": goal.clone_weight}
    loss = sum(weights[name] * value for name, value in means.items())
    known = add_up(torch.stack(pairs).cpu().double().sum(0)).tolist() if pairs else []
    ratios = zip(compared, known, strict=True)
    relative = {f"relative/{name}": missed / square for name, (missed, square) in ratios if square > 0}
    return {"loss": loss, **means, "perplexity": math.exp(min(means["lm"], 700.0)), **relative}


def terms_of(output: CloneOutput, taps: bool = False) -> dict[str, Tensor]:
    """The terms of a loss by the names they are logged under, without gradient."""
    named = {"lm": output.lm, "kl": output.kl, "clone": output.clone}
    if taps and output.taps is not None:
        named |= {f"tap/{name}": value for name, value in output.taps.items()}
    return {name: value.detach() for name, value in named.items() if value is not None}


def told(step: int, found: str, terms: Mapping[str, float], samples: tuple[int, int]) -> str:
    """What is known of a step that was not done: its terms, the first tap that went wrong, its samples."""
    shown = ", ".join(f"{name} {value:.6g}" for name, value in terms.items() if "/" not in name)
    bad = next((name for name, value in terms.items() if "/" in name and not math.isfinite(value)), None)
    return (
        f"step {step + 1}: {found} ({shown}"
        + (f"; first non-finite: {bad}" if bad else "")
        + f"); batch: samples {samples[0]} to {samples[1]} of the sampler's order"
    )
