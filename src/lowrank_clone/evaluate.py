"""Evaluation that training's own numbers can be compared with: the same loss, the same reduction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .losses import lm_kl_loss
from .taps import head_input, read_head


@dataclass(frozen=True)
class LanguageLoss:
    """Mean next-token loss in nats per token over `tokens` predicted tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def batches(blocks: Sequence[Any], size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Token ids [size, length] of rows with `input_ids`; the last batch may be smaller."""
    for start in range(0, len(blocks), size):
        rows = [blocks[i]["input_ids"] for i in range(start, min(start + size, len(blocks)))]
        yield torch.as_tensor(rows, device=device)


@torch.no_grad()
def language_loss(model: PreTrainedModel, blocks: Sequence[Any], batch_size: int = 4) -> LanguageLoss:
    """Next-token loss of any causal language model on blocks of equal length (rows with `input_ids`), chunked over
    tokens as in training, so that [batch, length, V] logits never exist."""
    head = read_head(model)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for ids in batches(blocks, batch_size, model.device):
        with evaluating(model), head_input(model) as caught:
            model(input_ids=ids, use_cache=False)
        hidden = caught.hidden[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten()
        _, lm, _ = lm_kl_loss(hidden, head, None, None, targets, torch.ones_like(targets, dtype=torch.bool))
        total += lm.double().cpu() * len(targets)
        tokens += len(targets)
    return LanguageLoss(float(total) / tokens, tokens)


@torch.no_grad()
def continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 24) -> str:
    """What `model` writes after `prompt`, greedily, on one line."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with evaluating(model):
        output: Any = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(str(text).split())
