"""What can't be planned ends with what would work, and that works."""

import pytest
from tiny import tiny_config
from transformers import BambaConfig, GPT2Config, JambaConfig, Mamba2Config

from lowrank_clone import InputError, make_plan

SSM = {"vocab_size": 96, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = {**SSM, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
TIED = {
    "mamba2": (Mamba2Config(**SSM, hidden_size=32, num_heads=8, head_dim=8, expand=2, n_groups=1), "expand", 4),
    "jamba": (JambaConfig(**HYBRID, num_experts=4), "mamba_expand", 4),
    "bamba": (
        BambaConfig(**HYBRID, mamba_n_heads=8, mamba_d_head=8, mamba_expand=2, attn_layer_indices=[1]),
        "mamba_expand",
        4,
    ),
}


@pytest.mark.parametrize("family", TIED)
def test_a_factor_of_the_width_that_keeps_an_inner_width_is_named(family: str) -> None:
    config, field, value = TIED[family]
    with pytest.raises(InputError, match=rf"set student\.{field}: {value}, which keeps the teacher's inner width"):
        make_plan(config, 16)
    inner = {role.inner for role in make_plan(config, 16, {field: value}).roles.values() if role.inner}
    assert 64 in inner  # 32 channels times 2, as in the teacher


def test_near_widths_that_can_be_had_are_named() -> None:
    teacher = tiny_config("gemma2", num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(InputError, match=r"not a multiple of the number of attention heads.*can be had: 12, 15, 18$"):
        make_plan(teacher, 16)
    make_plan(teacher, 15), make_plan(teacher, 18)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 50}, "student.vocab_size = 50 is in the way: leave it out"),
        ({"num_hidden_layers": 1}, "student.num_hidden_layers = 1 is in the way: leave it out"),
        ({"num_attention_heads": 8}, "student.num_attention_heads = 8 is in the way: leave it out"),
        ({"head_dim": 4}, "student.head_dim = 4 is in the way: leave it out"),
        ({"intermediate_size": 8, "rms_norm_eps": 1e-5}, "student.intermediate_size = 8 is in the way: leave it out"),
        ({"tie_word_embeddings": True}, "leave `student.tie_word_embeddings` false"),
    ],
)
def test_an_override_that_changes_shapes_is_named(overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(tiny_config("llama"), 16, overrides)


@pytest.mark.parametrize(
    "key", ["model_type", "architectures", "is_encoder_decoder", "is_decoder", "dtype", "auto_map", "hidden_size"]
)
def test_an_override_of_what_a_model_is_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"student\.{key}: got 'x'.*leave it out"):
        make_plan(tiny_config("llama"), 16, {key: "x"})


def test_a_family_that_ties_several_widths_gets_no_advice_that_does_not_work() -> None:
    with pytest.raises(InputError, match=r"it is not supported$"):
        make_plan(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=96), 16)


def test_one_channel_is_refused() -> None:
    with pytest.raises(InputError, match="a norm leaves no more than a sign"):
        make_plan(tiny_config("llama"), 1)
