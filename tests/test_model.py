"""`CloneModel`: terms and their weights, which tokens count, what is frozen, what is inherited, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.tokens import count_tokens


def clone(family: str = "llama", **options: Any) -> CloneModel:
    return CloneModel(tiny_model(family), 16, factor_std=0.2, **options).train()


def calls(module: nn.Module) -> list[int]:
    """Grows by one with each forward pass of a module."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


# --- the output -------------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    output = clone(lm_weight=0.5, kl_weight=1.3, clone_weight=0.7)(batch())
    expected = 0.5 * output.lm + 1.3 * output.kl + 0.7 * output.clone
    assert torch.allclose(output.loss, expected)
    assert torch.allclose(output.clone, torch.stack(list(output.taps.values())).sum())


def test_only_the_loss_carries_gradient() -> None:
    output = clone()(batch())
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in [output.lm, output.kl, output.clone, *output.taps.values()])


def test_taps_are_readable_by_the_student_s_parameter_names() -> None:
    model = clone()
    taps = model(batch()).taps
    assert list(taps) == [tap.name for tap in model.plan.taps]
    assert set(taps) <= set(dict(model.student.named_parameters()))
    assert "model.layers.1.self_attn.o_proj.weight" in taps


def test_language_model_loss_is_the_one_of_transformers() -> None:
    model = clone("gemma2")
    ids = batch()
    assert torch.allclose(model(ids).lm, model.student(ids, labels=ids).loss, rtol=1e-5)


def test_terms_of_weight_zero_are_not_computed() -> None:
    no_kl, no_clone = clone(kl_weight=0.0), clone(clone_weight=0.0)
    full, without_kl, without_clone = clone()(batch()), no_kl(batch()), no_clone(batch())
    assert without_kl.kl is None and torch.equal(without_kl.clone, full.clone)
    assert without_clone.clone is None and without_clone.taps is None and torch.equal(without_clone.kl, full.kl)


def test_the_teacher_does_not_run_when_nothing_is_compared_with_it() -> None:
    model = clone(kl_weight=0.0, clone_weight=0.0)
    seen = calls(model.teacher)
    output = model(batch())
    assert not seen and torch.allclose(output.loss, output.lm)
    other = clone(kl_weight=0.0)
    seen = calls(other.teacher)
    other(batch())
    assert seen == [1]


def test_eval_and_no_grad_give_the_same_loss() -> None:
    model = clone()
    training = model(batch()).loss.detach()
    with torch.no_grad():
        assert torch.equal(model.eval()(batch()).loss, training)


def test_a_chosen_few_taps() -> None:
    model = clone(taps=lambda tap: tap.kind == "read" and tap.layer == 1)
    taps = model(batch()).taps
    full = clone()(batch()).taps
    assert len(taps) == 5 and all(torch.equal(value, full[name]) for name, value in taps.items())


# --- which tokens count -----------------------------------------------------------------------------------------------

MASKS = {
    "all": ([1, 1, 1, 1, 1], None, (4, 5)),
    "right-padding": ([1, 1, 1, 0, 0], None, (2, 3)),
    "left-padding": ([0, 0, 1, 1, 1], None, (2, 3)),
    "prompt": ([1, 1, 1, 1, 1], [-100, -100, 7, 8, 9], (3, 3)),
    "first-token": ([1, 1, 1, 1, 1], [-100, 6, 7, 8, 9], (4, 5)),
    "prompt-and-padding": ([0, 1, 1, 1, 0], [5, -100, 7, 8, 9], (2, 3)),
    "nothing": ([1, 1, 1, 1, 1], [-100] * 5, (0, 0)),
}


@pytest.mark.parametrize("case", MASKS)
def test_counted_tokens(case: str) -> None:
    mask, labels, expected = MASKS[case]
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "attention_mask": torch.tensor([mask])}
    if labels is not None:
        inputs["labels"] = torch.tensor([labels])
    assert tuple(count_tokens(inputs).tolist()) == expected


def test_a_mask_of_ones_and_labels_equal_to_the_ids_change_nothing() -> None:
    model, ids = clone(), batch()
    expected = model(ids).loss
    for inputs in ({"attention_mask": torch.ones_like(ids)}, {"labels": ids.clone()}):
        assert torch.allclose(model(ids, **inputs).loss, expected, rtol=1e-6)


def test_a_given_count_divides_every_term() -> None:
    model, ids = clone(), batch()
    own, halved = model(ids), model(ids, num_items_in_batch=2 * count_tokens({"input_ids": ids}))
    for name in ("loss", "lm", "kl", "clone"):
        assert torch.allclose(halved[name], own[name] / 2, rtol=1e-6), name


def test_a_batch_without_counted_tokens_gives_zero_and_no_nan() -> None:
    model, ids = clone(), batch()
    output = model(ids, labels=torch.full_like(ids, -100))
    assert float(output.loss.detach()) == 0.0
    output.loss.backward()
    model.factors.pull()
    assert not any(factor.grad.any() for factor in model.factors.parameters() if factor.grad is not None)


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_normalised_taps_do_not_feel_the_size_of_the_activations() -> None:
    """Scaling one projection of the teacher scales its raw tap a hundredfold, its normalised tap not at all."""
    values = {}
    for normalization in ("none", "target"):
        teacher = tiny_model("llama", hidden_act="relu")
        small = CloneModel(teacher, 16, clone_normalization=normalization).train()
        before = small(batch()).taps
        with torch.no_grad():
            teacher.model.layers[1].mlp.up_proj.weight.mul_(10)
        large = CloneModel(teacher, 16, clone_normalization=normalization).train()
        after = large(batch()).taps
        name = "model.layers.1.mlp.up_proj.weight"
        values[normalization] = float(after[name] / before[name])
    assert values["none"] == pytest.approx(100, rel=1e-3)
    assert values["target"] == pytest.approx(1, rel=1e-3)


def test_evaluation_does_not_move_the_running_mean() -> None:
    model = clone(clone_normalization="target")
    model(batch())
    model.factors.push()
    model.eval()(batch(seed=7))
    mean = model.target_squares.mean.clone()
    model.eval()(batch(seed=8))
    model.factors.push()
    model(batch(seed=9))
    assert torch.equal(model.target_squares.mean, mean)


# --- what is frozen, inherited, built ---------------------------------------------------------------------------------


def test_the_teacher_stays_frozen_and_in_eval_mode() -> None:
    teacher = tiny_model("llama").train().requires_grad_(True)
    model = CloneModel(teacher, 16)
    model.train()
    assert model.student.training and model.training
    assert not any(module.training for module in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    model(batch()).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "starcoder2", "gpt_oss", "olmo2"])
def test_inherited_parameters_are_copies_of_the_teacher_s_and_frozen(family: str) -> None:
    model = clone(family)
    inherited = model.plan.of_kind("inherited")
    ours, theirs = dict(model.student.named_parameters()), dict(model.teacher.named_parameters())
    assert inherited
    for role in inherited:
        assert torch.equal(ours[role.name], theirs[role.name]) and not ours[role.name].requires_grad
        assert ours[role.name] is not theirs[role.name]
    trained = {role.name for role in model.plan.roles.values()} - {role.name for role in inherited}
    assert all(ours[name].requires_grad for name in trained)


def test_buffers_that_are_saved_are_inherited() -> None:
    teacher = tiny_model(
        "glm4_moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, first_k_dense_replace=1
    )
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    teacher.get_buffer(name).normal_()
    student = CloneModel(teacher, 16).student
    assert torch.equal(student.get_buffer(name), teacher.get_buffer(name)) and student.get_buffer(name).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_student_s_dtype_is_free_of_the_teacher_s(dtype: torch.dtype) -> None:
    model = CloneModel(tiny_model("llama", dtype=torch.bfloat16), 16, dtype=dtype)
    assert {parameter.dtype for parameter in model.student.parameters()} == {dtype}
    assert {parameter.dtype for parameter in model.teacher.parameters()} == {torch.bfloat16}
    output = model.train()(batch())
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    output.loss.backward()


def test_overridden_fields_are_what_the_student_computes_with() -> None:
    plain, overridden = clone(), clone(student={"rms_norm_eps": 0.5})
    assert overridden.config.rms_norm_eps == 0.5
    assert overridden.student.model.norm.variance_epsilon == 0.5
    assert not torch.equal(plain(batch()).lm, overridden(batch()).lm)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_s_attention_is_the_teacher_s(family: str, attention: str) -> None:
    teacher = tiny_model(family)
    teacher.set_attn_implementation(attention)
    assert CloneModel(teacher, 16).student.config._attn_implementation == attention


def test_the_student_s_experts_run_as_the_teacher_s() -> None:
    teacher = tiny_model("mixtral")
    teacher.set_experts_implementation("eager")
    assert CloneModel(teacher, 16).student.config._experts_implementation == "eager"


def test_compared_at_teacher_width_a_write_needs_no_target_leaf() -> None:
    paper, published = clone(), clone(attn_out_tap="teacher")
    assert sorted(dict(paper.targets.items())) == sorted(tap.name for tap in paper.plan.taps if tap.kind == "write")
    assert all("down_proj" in name for name, _ in published.targets.items())
    o_proj = "model.layers.0.self_attn.o_proj.weight"
    assert not torch.equal(paper(batch()).taps[o_proj], published(batch()).taps[o_proj])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_quantised_weights_are_refused() -> None:
    teacher = tiny_model("llama")
    layer = teacher.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"`model.layers.0.mlp.up_proj.weight` is stored as torch.int8; expected") as e:
        CloneModel(teacher, 16)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("hidden_size", [0, 24, True, 3.5])
def test_an_unusable_width_is_refused(hidden_size: Any) -> None:
    with pytest.raises(InputError, match=r"student.hidden_size: got"):
        CloneModel(tiny_model("llama"), hidden_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_reentrant": True}, "got use_reentrant=True, expected False"),
        ({"recompute": "some"}, "recompute: got 'some', expected all or elementwise"),
        ({"recomputed": "all"}, "unknown option `recomputed`"),
        ({"every_n_layers": 0}, "every_n_layers: got 0, expected a whole number"),
    ],
)
def test_checkpointing_that_is_not_usable_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        clone().activation_checkpointing_enable(options)


def test_a_model_that_cannot_be_checkpointed_is_refused() -> None:
    model = clone()
    type(model.student).supports_gradient_checkpointing = False
    try:
        with pytest.raises(InputError, match="LlamaForCausalLM does not support it"):
            model.activation_checkpointing_enable()
    finally:
        type(model.student).supports_gradient_checkpointing = True


@pytest.mark.parametrize("options", [{"every_n_layers": 2}, {"every_n_layers": 2, "recompute": "elementwise"}])
def test_every_other_layer_can_be_checkpointed(options: dict[str, Any]) -> None:
    model = clone()
    model.activation_checkpointing_enable(options)
    layers = [m for m in model.student.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert [layer.gradient_checkpointing for layer in layers] == [True, False]


def test_generation_settings_are_copied_and_not_shared() -> None:
    model = clone()
    model.student.generation_config.max_new_tokens = 7
    assert model.teacher.generation_config.max_new_tokens is None


def test_data_parallel_copies_are_refused() -> None:
    clone = CloneModel(tiny_model("llama"), 16)
    with pytest.raises(InputError, match=r"nn\.DataParallel: .*--launch ddp"):
        clone._replicate_for_data_parallel()  # what nn.DataParallel asks of each module
