"""No dropout, no jitter: the student's loss in training is its loss in evaluation, recomputed or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import MOE, batch, tiny_config, tiny_model

from lowrank_clone.errors import InputError
from lowrank_clone.hooks import evaluating
from lowrank_clone.model import CloneModel
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.noise import training_noise
from lowrank_clone.plan.sizes import remarks

# Noise in the attention, in blocks' children, in the block's own forward pass (doge), in the router, in the embedding.
NOISY: dict[str, dict[str, Any]] = {
    "llama": {"attention_dropout": 0.3},
    "starcoder2": {"residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3},
    "doge": {"hidden_dropout": 0.3},
    "mixtral": {"router_jitter_noise": 0.3, "attention_dropout": 0.3, **MOE},
    "phimoe": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3, **MOE},
}


def loss_and_gradients(clone: CloneModel) -> dict[str, torch.Tensor]:
    loss = clone(batch()).loss
    loss.backward()
    clone.factors.pull()
    return {"loss": loss.detach(), **{name: f.grad.clone() for name, f in clone.factors.named_parameters()}}


@pytest.mark.parametrize("family", NOISY)
def test_the_loss_in_training_is_that_in_evaluation(family: str) -> None:
    clone = CloneModel(tiny_model(family, **NOISY[family]), 16, factor_std=0.2)
    with torch.no_grad():
        fresh = clone(batch()).loss
        losses = [clone.train(mode)(batch()).loss for mode in (True, True, False)]
    assert clone.train().training and all(torch.equal(loss, fresh) for loss in losses)


@pytest.mark.parametrize("recompute", ["all", "elementwise"])
@pytest.mark.parametrize("family", ["doge", "starcoder2"])
def test_a_recomputed_layer_draws_none_either(family: str, recompute: str) -> None:
    plain, again = (CloneModel(tiny_model(family, **NOISY[family]), 16, factor_std=0.2).train() for _ in range(2))
    runs: list[int] = []
    again.student.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    again.activation_checkpointing_enable({"recompute": recompute})
    ours, expected = loss_and_gradients(again), loss_and_gradients(plain)
    assert len(runs) == 2  # once forward, once in the recomputation
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(again.eval()(batch()).loss, plain.eval()(batch()).loss)


def test_evaluating_in_between_leaves_every_mode_as_it_was() -> None:
    clone = CloneModel(tiny_model("doge", **NOISY["doge"]), 16)
    clone.activation_checkpointing_enable()
    modes = [module.training for module in clone.train().modules()]
    with evaluating(clone.student):
        assert not any(module.training for module in clone.student.modules())
    assert [module.training for module in clone.modules()] == modes and any(modes)


def test_the_saved_config_keeps_the_teacher_s_values_and_the_plan_says_so() -> None:
    fields = NOISY["starcoder2"]
    clone = CloneModel(tiny_model("starcoder2", **fields), 16)
    assert training_noise(clone.student.config.to_dict()) == fields
    (line,) = remarks(clone.plan)
    assert "trains without the teacher's" in line and all(f"{key}=0.3" in line for key in fields)


def test_noise_can_not_be_asked_for() -> None:
    with pytest.raises(InputError, match=r"student\.attention_dropout: got 0\.1, expected 0"):
        make_plan(tiny_config("llama"), 16, {"attention_dropout": 0.1})
    assert make_plan(tiny_config("llama", attention_dropout=0.1), 16, {"attention_dropout": 0.0})


def test_only_numbers_above_zero_named_after_noise_count() -> None:
    fields = {"attn_pdrop": 0.1, "hidden_dropout": 0.0, "moe_token_dropout": True, "label_noise_ratio": 0.4}
    assert training_noise({**fields, "router_jitter_noise": 0.01}) == {"attn_pdrop": 0.1, "router_jitter_noise": 0.01}
