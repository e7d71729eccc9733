"""The plan: every parameter of every family gets exactly one role, from shapes alone, and refusals say why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_config, tiny_model
from transformers import AutoConfig, LlamaConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.plan.architecture import on_meta
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.families import survey_all
from lowrank_clone.plan.roles import Plan

WIDTH = 16


def plan_of(family: str, overrides: dict[str, Any] | None = None, **teacher: Any) -> Plan:
    return make_plan(tiny_config(family, **teacher), WIDTH, overrides)


def refusal(config: PretrainedConfig, hidden_size: Any = WIDTH, overrides: dict[str, Any] | None = None) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        make_plan(config, hidden_size, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def block(plan: Plan, index: int = 0) -> dict[str, tuple[str, str]]:
    """Kind and group of the parameters of one layer, by their name inside it."""
    prefix = f"model.layers.{index}."
    return {n.removeprefix(prefix): (r.kind, r.group) for n, r in plan.roles.items() if n.startswith(prefix)}


# --- what is classified -----------------------------------------------------------------------------------------------

LLAMA_BLOCK = {
    "self_attn.q_proj.weight": ("read", "attention"),
    "self_attn.k_proj.weight": ("read", "attention"),
    "self_attn.v_proj.weight": ("read", "attention"),
    "self_attn.o_proj.weight": ("write", "attention"),
    "mlp.gate_proj.weight": ("read", "ffn"),
    "mlp.up_proj.weight": ("read", "ffn"),
    "mlp.down_proj.weight": ("write", "ffn"),
    "input_layernorm.weight": ("vector", "vector"),
    "post_attention_layernorm.weight": ("vector", "vector"),
}
INHERITED = ("inherited", "inherited")


def test_llama_by_the_design() -> None:
    plan = plan_of("llama", tie_word_embeddings=False)
    assert block(plan) == block(plan, 1) == LLAMA_BLOCK
    outside = {name: (role.kind, role.group) for name, role in plan.roles.items() if role.layer is None}
    assert outside == {
        "model.embed_tokens.weight": ("read", "embedding"),
        "model.norm.weight": ("vector", "vector"),
        "lm_head.weight": ("read", "head"),
    }


def test_tied_parameters_have_one_role() -> None:
    plan = plan_of("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in plan.roles
    assert plan.roles["model.embed_tokens.weight"].group == "embedding"


def test_llama_taps_are_the_linears_of_each_layer_in_order() -> None:
    names = [name for name, (kind, _) in LLAMA_BLOCK.items() if kind != "vector"]
    expected = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in names]
    assert [tap.name for tap in plan_of("llama").taps] == expected
    assert [(tap.kind, tap.group, tap.layer, tap.inner) for tap in plan_of("llama").taps][3:7] == [
        ("write", "attention", 0, 32),
        ("read", "ffn", 0, 40),
        ("read", "ffn", 0, 40),
        ("write", "ffn", 0, 40),
    ]


@pytest.mark.parametrize(
    ("family", "differs"),
    [
        ("mistral", {}),
        ("gemma", {}),
        ("granite", {}),
        ("qwen2", {f"self_attn.{name}_proj.bias": INHERITED for name in "qkv"}),
        ("qwen3", {f"self_attn.{name}_norm.weight": INHERITED for name in "qk"}),
        ("gemma2", {f"{side}_feedforward_layernorm.weight": ("vector", "vector") for side in ("pre", "post")}),
        (
            "gemma3_text",
            {f"{side}_feedforward_layernorm.weight": ("vector", "vector") for side in ("pre", "post")}
            | {f"self_attn.{name}_norm.weight": INHERITED for name in "qk"},
        ),
        (
            "phi3",
            {f"self_attn.{name}_proj.weight": None for name in "qkv"}
            | {f"mlp.{name}_proj.weight": None for name in ("gate", "up")}
            | {"self_attn.qkv_proj.weight": ("read", "attention"), "mlp.gate_up_proj.weight": ("read", "ffn")},
        ),
        (
            "starcoder2",
            {f"self_attn.{name}_proj.bias": INHERITED for name in "qkv"}
            | {f"mlp.{name}_proj.weight": None for name in ("gate", "up", "down")}
            | {
                "self_attn.o_proj.bias": ("bias", "attention"),
                "mlp.c_fc.weight": ("read", "ffn"),
                "mlp.c_fc.bias": INHERITED,
                "mlp.c_proj.weight": ("write", "ffn"),
                "mlp.c_proj.bias": ("bias", "ffn"),
                "input_layernorm.bias": ("vector", "vector"),
                "post_attention_layernorm.bias": ("vector", "vector"),
            },
        ),
        (
            "olmo2",
            {"input_layernorm.weight": None, "post_feedforward_layernorm.weight": ("vector", "vector")}
            | {f"self_attn.{name}_norm.weight": INHERITED for name in "qk"},
        ),
        ("cohere", {"post_attention_layernorm.weight": None}),
        (
            "qwen3_moe",
            {f"mlp.{name}_proj.weight": None for name in ("gate", "up", "down")}
            | {f"self_attn.{name}_norm.weight": INHERITED for name in "qk"}
            | {
                "mlp.gate.weight": ("read", "ffn"),
                "mlp.experts.gate_up_proj": ("read", "experts"),
                "mlp.experts.down_proj": ("write", "experts"),
            },
        ),
        (
            "mixtral",
            {f"mlp.{name}_proj.weight": None for name in ("gate", "up", "down")}
            | {
                "mlp.gate.weight": ("read", "ffn"),
                "mlp.experts.gate_up_proj": ("read", "experts"),
                "mlp.experts.down_proj": ("write", "experts"),
            },
        ),
        (
            "gpt_oss",
            {f"mlp.{name}_proj.weight": None for name in ("gate", "up", "down")}
            | {f"self_attn.{name}_proj.bias": INHERITED for name in "qkv"}
            | {
                "self_attn.o_proj.bias": ("bias", "attention"),
                "self_attn.sinks": INHERITED,
                "mlp.router.weight": ("read", "ffn"),
                "mlp.router.bias": INHERITED,
                "mlp.experts.gate_up_proj": ("read", "experts"),
                "mlp.experts.gate_up_proj_bias": INHERITED,
                "mlp.experts.down_proj": ("write", "experts"),
                "mlp.experts.down_proj_bias": ("bias", "experts"),
            },
        ),
    ],
)
def test_families_differ_from_llama_where_they_should(family: str, differs: dict[str, tuple[str, str] | None]) -> None:
    expected = {name: role for name, role in {**LLAMA_BLOCK, **differs}.items() if role is not None}
    assert block(plan_of(family)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_once(family: str) -> None:
    plan = plan_of(family)
    student, teacher = on_meta(plan.student_config), on_meta(plan.teacher_config)
    assert list(plan.roles) == [name for name, _ in student.named_parameters()]
    ours, theirs = dict(student.named_parameters()), dict(teacher.named_parameters(remove_duplicate=False))
    for name, role in plan.roles.items():
        assert role.student_shape == tuple(ours[name].shape)
        assert role.teacher_shape == tuple(theirs[name].shape)
        if role.kind == "inherited":
            assert role.axis is None and role.student_shape == role.teacher_shape
        else:
            assert (role.teacher_shape[role.axis], role.student_shape[role.axis]) == (24, WIDTH)
            assert plan.roles[role.factor].kind in (role.kind, "write")


@pytest.mark.parametrize("family", ["starcoder2", "gpt_oss"])
def test_a_write_s_bias_shares_its_factor(family: str) -> None:
    biases = plan_of(family).of_kind("bias")
    assert len(biases) == 4
    for role in biases:
        assert role.factor in (role.name.removesuffix("_bias"), role.name.removesuffix("bias") + "weight")


@pytest.mark.parametrize(
    ("family", "read", "write"),
    [
        # [expert, out, in]: the residual width is the last axis of a read and the middle one of a write.
        ("qwen3_moe", ((4, 40, 24), -1), ((4, 24, 20), -2)),
        ("mixtral", ((4, 80, 24), -1), ((4, 24, 40), -2)),
        # [expert, in, out]
        ("gpt_oss", ((4, 24, 80), -2), ((4, 40, 24), -1)),
        ("llama4_text", ((4, 24, 80), -2), ((4, 40, 24), -1)),
    ],
)
def test_experts_in_both_layouts(family: str, read: Any, write: Any) -> None:
    overrides = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "llama4_text" else {}
    plan = plan_of(family, **overrides)
    experts = {role.kind: (role.teacher_shape, role.axis) for role in plan.roles.values() if role.group == "experts"}
    experts.pop("bias", None)
    assert experts == {"read": read, "write": write}
    # One tap for the experts as a whole, at their output, and one for the router.
    taps = [tap for tap in plan.taps if tap.layer == 0 and ".self_attn." not in tap.name]
    assert [tap.kind for tap in taps if tap.group == "experts"] == ["write"]
    assert any(tap.kind == "read" and tap.inner == 4 for tap in taps)


def test_the_layout_of_experts_does_not_depend_on_which_width_is_larger() -> None:
    wide = plan_of("qwen3_moe", moe_intermediate_size=100).roles["model.layers.0.mlp.experts.gate_up_proj"]
    narrow = plan_of("qwen3_moe", moe_intermediate_size=5).roles["model.layers.0.mlp.experts.gate_up_proj"]
    assert (wide.kind, wide.axis) == (narrow.kind, narrow.axis) == ("read", -1)


def test_an_inner_width_equal_to_the_residual_width_is_no_problem() -> None:
    plan = plan_of("llama", intermediate_size=24, head_dim=6, num_key_value_heads=4)
    assert block(plan) == LLAMA_BLOCK


# --- the student's config ---------------------------------------------------------------------------------------------


def test_head_dim_is_made_explicit() -> None:
    plan = plan_of("mistral", head_dim=None, hidden_size=32)
    assert plan.student_config.head_dim == 8
    assert plan.student_config.num_attention_heads == 4


def test_only_the_width_and_overrides_change() -> None:
    plan = plan_of("qwen3", {"rms_norm_eps": 1e-5})
    ours, theirs = plan.student_config.to_dict(), plan.teacher_config.to_dict()
    assert {key for key in ours if ours[key] != theirs.get(key)} == {"hidden_size", "rms_norm_eps"}
    assert (plan.student_width, plan.teacher_width) == (WIDTH, 24)


def test_the_teacher_s_config_is_left_as_it_is() -> None:
    config = tiny_config("qwen2")
    before = config.to_dict()
    make_plan(config, WIDTH, {"rms_norm_eps": 1e-5})
    assert config.to_dict() == before


def test_counts_of_llama_by_hand() -> None:
    plan = plan_of("llama", tie_word_embeddings=False)
    per_layer = 32 * WIDTH + 2 * 16 * WIDTH + WIDTH * 32 + 3 * 40 * WIDTH + 2 * WIDTH
    assert plan.deployed_parameters == 2 * per_layer + 2 * 96 * WIDTH + WIDTH
    assert plan.trained_parameters == (2 * 7 + 2) * 24 * WIDTH + 5 * WIDTH


@pytest.mark.parametrize("family", ["llama", "gemma2", "starcoder2", "gpt_oss"])
def test_counts_agree_with_the_built_model(family: str) -> None:
    clone = CloneModel(tiny_model(family), WIDTH)
    assert clone.plan.deployed_parameters == sum(p.numel() for p in clone.student.parameters())
    assert clone.plan.trained_parameters == sum(factor.numel() for factor in clone.factors.parameters())


def test_a_seven_billion_teacher_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    devices: Counter[str] = Counter()
    register = torch.nn.Module.register_parameter

    def watching(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            devices[parameter.device.type] += 1
        register(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watching)
    plan = make_plan(config, 1536)
    assert set(devices) == {"meta"}
    assert 2.4e9 < plan.deployed_parameters < 2.6e9


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_size", [0, -1, True, 3.5, "16", None])
def test_a_width_that_is_no_positive_integer_is_refused(hidden_size: Any) -> None:
    message = refusal(tiny_config("llama"), hidden_size)
    assert message == f"student.hidden_size: got {hidden_size!r}, expected a positive integer"


@pytest.mark.parametrize("hidden_size", [24, 25, 4096])
def test_a_width_that_is_not_below_the_teacher_s_is_refused(hidden_size: int) -> None:
    message = refusal(tiny_config("llama"), hidden_size)
    assert message.startswith(f"student.hidden_size: got {hidden_size}, expected less than the teacher's 24")


def test_an_unknown_override_is_refused_with_a_suggestion() -> None:
    message = refusal(tiny_config("llama"), overrides={"rms_norm_epsilon": 1e-5})
    assert message == "student.rms_norm_epsilon: no such field in the config of `llama`; did you mean `rms_norm_eps`?"


@pytest.mark.parametrize(
    "overrides", [{"num_hidden_layers": 1}, {"intermediate_size": 20}, {"num_attention_heads": 2}, {"vocab_size": 50}]
)
def test_overrides_of_other_sizes_are_refused(overrides: dict[str, int]) -> None:
    assert "`llama`" in refusal(tiny_config("llama"), overrides=overrides)


def test_tying_an_untied_teacher_s_head_is_refused() -> None:
    message = refusal(tiny_config("llama", tie_word_embeddings=False), overrides={"tie_word_embeddings": True})
    assert "`lm_head.weight` is tied in the student" in message


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "`transformer.h.0.attn.c_attn.weight` goes from [768, 2304] to [384, 1152]"),
        ("gptj", "ties an inner width to `hidden_size`"),
        ("bloom", "ties an inner width to `hidden_size`"),
        ("opt", "exists in the student only"),
        ("gpt_neox", "`gpt_neox.layers.0.attention.query_key_value.weight` goes from [18432, 6144] to [9216, 3072]"),
        ("falcon", "`transformer.rotary_emb.inv_freq` has shape [32] in the teacher and [16] in the student"),
        ("bert", "is an encoder"),
        ("roberta", "is an encoder"),
        ("t5", "is an encoder-decoder"),
        ("bart", "is an encoder-decoder"),
        ("whisper", "is an encoder-decoder"),
        ("vit", "has no causal language model"),
        ("lfm3", "convolves the residual stream"),
        # Norms of an inner width that are sized by `hidden_size`.
        ("bitnet", "can't run at hidden_size"),
        ("olmoe", "can't run at hidden_size"),
    ],
)
def test_what_can_not_be_cloned_is_refused_with_the_reason(family: str, reason: str) -> None:
    config = CONFIG_MAPPING[family]()
    message = refusal(config, config.hidden_size // 2)
    assert f"`{config.model_type}`" in message and reason in message


def test_a_nested_text_model_is_planned_by_itself() -> None:
    config = AutoConfig.for_model("gemma3")
    plan = make_plan(config, 512)
    assert plan.teacher_config.model_type == plan.student_config.model_type == "gemma3_text"


def test_at_least_85_families_of_the_installed_transformers_are_supported() -> None:
    families = survey_all()
    supported = {family.model_type for family in families if family.supported}
    assert len(supported) >= 85
    assert all(family.plan.taps for family in families if family.plan is not None)
    assert all(family.reason and "\n" not in family.reason for family in families if not family.supported)
    wanted = "smollm3 falcon_h1 nemotron_h mamba glm4 deepseek_v2 deepseek_v3 qwen3_next qwen3_5_text olmo phi"
    assert supported >= {*FAMILIES, *wanted.split()}
