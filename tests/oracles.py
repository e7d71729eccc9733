"""The method written naively: what the library's fast paths must agree with.

Weights are generated inside autograd as `B Z` and `Z^T B`, logits are built whole, taps are plain hooks and means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from lowrank_clone.model import CloneModel
from lowrank_clone.objective.head import Head
from lowrank_clone.plan.roles import TapSpec


@dataclass
class Naive:
    """Loss, its terms and the gradient of every factor."""

    loss: Tensor
    lm: Tensor
    kl: Tensor
    clone: Tensor
    taps: dict[str, Tensor]
    gradients: dict[str, Tensor]


def naive_objective(
    clone: CloneModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    attn_out_tap: str = "student",
    clone_normalization: str = "none",
) -> Naive:
    """The objective of LRC (arXiv 2505.12781, section 3.2) by its definition, at the clone's factors and weights."""
    factors = {name: value.detach().clone().requires_grad_() for name, value in clone.factors.items()}
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    inputs = {key: value for key, value in inputs.items() if value is not None}
    taps = clone.plan.taps
    with torch.no_grad():
        targets, teacher_logits = run(clone.teacher, taps, dict(clone.teacher.named_parameters()), inputs)
    outputs, logits = run(clone.student, taps, generated(clone, factors), inputs)

    predicted, valid = positions(input_ids, attention_mask, labels)

    lm = F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), ignore_index=-100)
    t = clone.objective.temperature
    divergence = F.kl_div(
        F.log_softmax(logits / t, -1), F.log_softmax(teacher_logits / t, -1), log_target=True, reduction="none"
    )
    kl = t**2 * divergence.sum(-1)[valid].mean()
    teacher_modules = dict(clone.teacher.named_modules())
    losses: dict[str, Tensor] = {}
    for tap in taps:
        losses[tap.name] = torch.zeros((), dtype=logits.dtype)
        for (given, output), (_, target) in zip(outputs[tap.name], targets[tap.name], strict=True):
            if tap.kind == "write" and attn_out_tap == "teacher" and tap.group == "attention":
                module = teacher_modules[tap.module]
                output = F.linear(given, module.weight, module.bias)
            elif tap.kind == "write":
                target = target @ factors[tap.name]
            # Some experts run on every token, once for each expert; a token's squares are then summed over them.
            output, target = (x.reshape(-1, valid.numel(), x.shape[-1]) for x in (output, target))
            output, target = output[:, valid.flatten()], target[:, valid.flatten()]
            scale = target.detach().square().sum(0).mean() if clone_normalization == "target" else 1.0
            losses[tap.name] = losses[tap.name] + (output - target).square().sum(0).mean() / scale
    total = torch.stack(list(losses.values())).sum()
    goal = clone.objective
    loss = goal.lm_weight * lm + goal.kl_weight * kl + goal.clone_weight * total
    gradients = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
    return Naive(
        loss.detach(),
        lm.detach(),
        kl.detach(),
        total.detach(),
        {name: value.detach() for name, value in losses.items()},
        {
            name: torch.zeros_like(factor) if gradient is None else gradient
            for (name, factor), gradient in zip(factors.items(), gradients, strict=True)
        },
    )


def positions(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Targets [batch, length] with -100 where there is none, and what `kl` compares, document by document."""
    targets, compared = torch.full_like(input_ids, -100), torch.zeros_like(input_ids, dtype=torch.bool)
    labels = input_ids if labels is None else labels
    for row in range(len(input_ids)):
        documents: list[list[int]] = []
        for i in range(input_ids.shape[1]):
            if attention_mask is not None and not attention_mask[row, i]:
                continue
            places = None if position_ids is None else position_ids[row % len(position_ids)]
            follows = documents and documents[-1][-1] == i - 1 and (places is None or places[i] == places[i - 1] + 1)
            documents[-1].append(i) if follows else documents.append([i])
        for document in documents:
            known = {i: int(labels[row, i]) for i in document if labels[row, i] != -100}
            for i in document[:-1]:
                targets[row, i] = known.get(i + 1, -100)
                compared[row, i] = i + 1 in known
            compared[row, document[-1]] = set(document[1:] or document) <= known.keys()
    return targets, compared


def generated(clone: CloneModel, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every parameter of the student: a function of the factors, or the teacher's."""
    basis = dict(clone.teacher.named_parameters(remove_duplicate=False))
    weights: dict[str, Tensor] = {}
    for name, role in clone.plan.roles.items():
        if role.kind == "inherited":
            weights[name] = basis[name]
        elif role.kind == "vector":
            weights[name] = factors[name]
        elif role.axis == -1:
            weights[name] = basis[name] @ factors[role.factor]
        else:
            weights[name] = factors[role.factor].T @ basis[name]
    return weights


Activations = dict[str, list[tuple[Tensor, Tensor]]]


def run(
    model: PreTrainedModel, taps: tuple[TapSpec, ...], weights: Mapping[str, Tensor], inputs: Mapping[str, Any]
) -> tuple[Activations, Tensor]:
    """The tapped inputs and outputs of every run of every tapped module, and the logits."""
    seen: Activations = {tap.name: [] for tap in taps}
    handles = []
    for tap in taps:
        width = model.config.hidden_size if tap.kind == "write" else tap.inner

        def hook(module: nn.Module, args: Any, output: Any, name: str = tap.name, width: int = width) -> None:
            several = output if isinstance(output, tuple) else (output,)
            shown = next(tensor for tensor in several if tensor.is_floating_point() and tensor.shape[-1] == width)
            seen[name].append((args[0].clone(), shown.clone()))  # some families change them in place afterwards

        handles.append(model.get_submodule(tap.module).register_forward_hook(hook))
    try:
        logits = functional_call(model, dict(weights), kwargs=dict(inputs)).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen, logits


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """What a head makes of hidden states, by its description."""
    logits = hidden @ head.weight.T
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def pulled_gradients(clone: CloneModel) -> dict[str, Tensor]:
    """Gradients of the factors after a backward pass, zeros where there is none."""
    clone.factors.pull()
    return {
        name: torch.zeros_like(factor) if factor.grad is None else factor.grad.clone()
        for name, factor in clone.factors.named_parameters()
    }


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((ours - truth).detach().norm() / truth.norm().clamp(min=torch.finfo(truth.dtype).tiny))


def hooks(model: nn.Module) -> int:
    """Hooks on all modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
