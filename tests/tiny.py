"""Tiny random models of many families: what the tests take for teachers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 96
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 20}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 16, "final_logit_softcapping": 3.0},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi3": {},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "starcoder2": {},
    "olmo2": {},
    "cohere": {"logit_scale": 0.25},
    "qwen3_moe": MOE,
    "mixtral": MOE,
    "gpt_oss": {**MOE, "sliding_window": 16},
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """The family's config at tiny sizes."""
    kind = CONFIG_MAPPING[family]
    fields = {**BASE, **FAMILIES.get(family, {}), **overrides}
    return kind(
        **{key: value for key, value in fields.items() if key in kind().to_dict() or key in FAMILIES.get(family, {})}
    )


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """A random model of the family; every parameter is moved off its start, so that no norm is 1 and no bias 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=dtype, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape, dtype=dtype).normal_(std=0.2, generator=generator)
            parameter.add_(noise)
    return model.eval()


def batch(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """[rows, length] token ids."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
