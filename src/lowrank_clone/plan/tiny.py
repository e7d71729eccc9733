"""A tiny model of any family that keeps its layout: what a family does is found by running it, in a second, unloaded.

Sizes are shrunk by what a config calls them, whatever the family; what says how a model is built (kinds of layers,
flags, activations, scales) stays. Of the layers one of each kind is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB = 96
# What configs call their sizes, by the tiny value. What a config sets among these is shrunk; nothing is added.
_SIZES: dict[int, str] = {
    VOCAB: "vocab_size vocab_size_per_layer_input",
    24: "hidden_size n_embd d_model",
    40: "intermediate_size ffn_dim dim_ff dense_intermediate_size intermediate_size_mlp ffn_hidden_size block_ff_dim",
    20: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size "
    "shared_intermediate_size moe_shared_expert_intermediate_size router_hidden_size",
    32: "mamba_d_ssm lru_width",
    8: "head_dim dim_head kv_channels index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim "
    "mamba_d_head mamba_head_dim hidden_size_per_layer_input qk_rope_head_dim qk_nope_head_dim v_head_dim kv_lora_rank "
    "q_lora_rank query_pre_attn_scalar prompt_length prompt_types segment_types position_bias_num_buckets "
    "block_multiple_of global_head_dim",
    4: "num_attention_heads linear_num_heads mamba_n_heads mamba_num_heads index_n_heads linear_num_value_heads "
    "mamba_d_state ssm_state_size state_size time_step_rank rotary_dim gated_norm_rank n_routed_experts num_experts "
    "num_local_experts moe_num_experts",
    2: "num_key_value_heads linear_num_key_heads mamba_n_groups n_groups num_experts_per_tok num_experts_per_token "
    "moe_topk moe_k index_topk_blocks H_cycles L_cycles num_layers_per_stack max_window_layers zero_expert_num "
    "eos_token_id",
    64: "max_position_embeddings model_max_length original_max_position_embeddings floor_scale attention_chunk_size",
    16: "sliding_window attention_window_size index_topk keep_window_size block_size index_block_size chunk_size "
    "mamba_chunk_size qk_head_dim",
    1: "n_group num_expert_group topk_group first_k_dense_replace num_dense_layers bos_token_id",
    0: "pad_token_id num_nextn_predict_layers",
}
_TINY = {name: size for size, names in _SIZES.items() for name in names.split()}
_DEPTH = ("num_hidden_layers", "num_layers", "n_layer")
KINDS = 6  # of layers that are kept


def tiny_config(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    """A config of the same layout at tiny sizes.

    Args:
        config: A decoder language model's (see `decoder_config`).
        changes: Fields that replace what the rules give.
    """
    fields = config.to_dict()
    small = {name: _shrunk(name, value) for name, value in fields.items()}
    small |= _layers(fields)
    if "head_dim" not in fields:  # the heads divide the width
        small["hidden_size"] = 32
    if "kv_lora_rank" in fields:  # latent attention has no groups of heads
        small["num_key_value_heads"] = 4
    if fields.get("num_experts_per_tok") == 1:
        small["num_experts_per_tok"] = 1
    for transient in ("model_type", "architectures", "transformers_version", "_name_or_path", "quantization_config"):
        small.pop(transient, None)
    small |= changes
    try:
        return type(config).from_dict(dict(small))
    except Exception:  # some configs insist that latent heads are as wide as the others
        rotary, other = fields.get("qk_rope_head_dim"), fields.get("qk_nope_head_dim")
        if not (rotary and other and "head_dim" in fields):
            raise
        return type(config).from_dict({**small, "head_dim": _TINY["qk_rope_head_dim"] + _TINY["qk_nope_head_dim"]})


def tiny_model(config: PretrainedConfig, seed: int = 0, noise: float = 0.05) -> PreTrainedModel:
    """A random float32 model of a tiny config, in eval mode.

    `noise` is added to every parameter, so that none is left at a start such as 0 or 1; more of it makes a model whose
    parts depend more on each other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
        with torch.no_grad():
            for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
                if not tensor.isfinite().all():  # memory that a checkpoint would fill
                    tensor.normal_(std=0.1)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model.eval()


def tried_tiny_model(config: PretrainedConfig, noise: float = 0.05) -> PreTrainedModel | None:
    """A tiny model of this config's layout that can run, or None where these rules make none."""
    try:
        model = tiny_model(tiny_config(config), noise=noise)
        with torch.no_grad():
            model(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False)
    except Exception:  # each family refuses sizes in its own way
        return None
    return model


def _shrunk(name: str, value: Any) -> Any:
    if isinstance(value, dict) and name.startswith("rope_"):  # LongRoPE has a factor for each rotated pair
        return {key: _shrunk(f"rope_{key}", nested) for key, nested in value.items()}
    if isinstance(value, list) and name.startswith("rope_") and name.endswith("_factor"):
        return value[: _TINY["head_dim"] // 2]
    if type(value) in (int, float) and name in _TINY:
        return type(value)(min(_TINY[name], value) if name.endswith(("_id", "group")) else _TINY[name])
    return value


def _layers(fields: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, or two where there is one kind; with layers that share others' states, all twice."""
    depth = next((fields[key] for key in _DEPTH if fields.get(key)), 0)
    if not depth:
        return {}
    by_layer = {key: value for key, value in fields.items() if isinstance(value, list) and len(value) == depth}
    kinds = [tuple(str(value[i]) for key, value in by_layer.items() if key.endswith("types")) for i in range(depth)]
    kept = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())[:KINDS]
    shared = {key: len(kept) for key, value in fields.items() if key.endswith("shared_layers") and value}
    if len(kept) == 1 or shared:
        kept = kept + (kept if shared else [min(kept[0] + 1, depth - 1)])
    small: dict[str, Any] = {key: [value[i] for i in kept] for key, value in by_layer.items()} | shared
    small |= {key: len(kept) for key in _DEPTH if key in fields}
    if varied := fields.get("per_layer_config"):
        small["per_layer_config"] = {
            str(place): {key: _TINY.get(key, value) for key, value in varied[str(i)].items()}
            for place, i in enumerate(kept)
            if str(i) in varied
        }
    return small
