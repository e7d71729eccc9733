"""Published layouts of model types whose default config is another model than the checkpoints that people use.

Data: the fields of a checkpoint's config.json that say how the model is built, and the checkpoint they are from. A type
that is not listed is built from its default config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@dataclass(frozen=True)
class Layout:
    """The fields of `source`'s config that its type's default config has not."""

    source: str
    fields: dict[str, Any] = field(default_factory=dict)


def _convolutions(depth: int, attention: tuple[int, ...]) -> list[str]:
    return ["full_attention" if layer in attention else "conv" for layer in range(depth)]


LAYOUTS: dict[str, Layout] = {
    "deepseek_v2": Layout(
        "deepseek-ai/DeepSeek-V2-Lite",
        {
            "q_lora_rank": None,
            "num_experts_per_tok": 6,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "first_k_dense_replace": 1,
        },
    ),
    "dots1": Layout(
        "rednote-hilab/dots.llm1.base",
        {
            "n_routed_experts": 128,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
    ),
    "gemma4_text": Layout(
        "google/gemma-4-E2B",
        {
            "num_hidden_layers": 35,
            "num_kv_shared_layers": 20,
            "num_key_value_heads": 1,
            "use_double_wide_mlp": True,
            "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        },
    ),
    "hunyuan_v1_dense": Layout("tencent/Hunyuan-7B-Instruct", {"num_key_value_heads": 8, "head_dim": 128}),
    "hunyuan_v1_moe": Layout(
        "tencent/Hunyuan-A13B-Instruct",
        {"num_key_value_heads": 8, "head_dim": 128, "num_experts": 64, "moe_topk": 8, "num_shared_expert": 1},
    ),
    "lfm2": Layout(
        "LiquidAI/LFM2-1.2B", {"num_hidden_layers": 16, "layer_types": _convolutions(16, (2, 5, 8, 10, 12, 14))}
    ),
    "lfm2_moe": Layout(
        "LiquidAI/LFM2-8B-A1B", {"num_hidden_layers": 24, "layer_types": _convolutions(24, (2, 6, 10, 14, 18, 21))}
    ),
    "ministral": Layout("mistralai/Ministral-8B-Instruct-2410", {"num_key_value_heads": 8, "head_dim": 128}),
    "nemotron": Layout("nvidia/Minitron-4B-Base", {"num_key_value_heads": 8, "head_dim": 128}),
    "olmo": Layout("allenai/OLMo-1.7-7B-hf", {"clip_qkv": 8.0}),
}


def layout_config(model_type: str) -> PretrainedConfig:
    """The config of this type at its published layout, or its default config where none is listed."""
    layout = LAYOUTS.get(model_type)
    return CONFIG_MAPPING[model_type](**(layout.fields if layout else {}))
