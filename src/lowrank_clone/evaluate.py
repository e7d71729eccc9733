"""Evaluation that training's own numbers can be compared with: the same loss, the same reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


@torch.no_grad()
def language_loss(model: PreTrainedModel, blocks: Sequence[Any], batch_size: int = 4) -> LanguageLoss:
    """Next-token loss of any causal language model on blocks of equal length (rows with `input_ids`), chunked over
    tokens as in training, so that [batch, length, V] logits never exist."""
    training, head = model.training, read_head(model)
    model.eval()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(blocks), batch_size):
        rows = [blocks[i]["input_ids"] for i in range(start, min(start + batch_size, len(blocks)))]
        ids = torch.as_tensor(rows, device=model.device)
        with head_input(model) as caught:
            model(input_ids=ids, use_cache=False)
        hidden = caught.hidden[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten()
        _, lm, _ = lm_kl_loss(hidden, head, None, None, targets, torch.ones_like(targets, dtype=torch.bool))
        total += lm.double().cpu() * len(targets)
        tokens += len(targets)
    model.train(training)
    return LanguageLoss(float(total) / tokens, tokens)


@torch.no_grad()
def continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 24) -> str:
    """What `model` writes after `prompt`, greedily, on one line."""
    training = model.training
    model.eval()
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output: Any = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
    )
    model.train(training)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(str(text).split())
