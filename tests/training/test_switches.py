"""Switches of parameterisation while training: groups as a new optimiser has them, and resumed runs to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from torch.optim import SGD, AdamW

from lowrank_clone import CloneArguments, CloneModel, CloneTrainer, InputError, MuonAdamW, bind
from lowrank_clone.recipe.schedule import MethodSchedule
from lowrank_clone.recipe.schema import MethodConfig, Switch
from lowrank_clone.training.optim import refresh


def at(kind: str, step: int) -> Switch:
    return Switch(kind=kind, from_step=step)


# Family, the teacher's and the clone's options, switches, the trainer's options.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "biases": ("starcoder2", {}, {}, {"ffn": at("dense", 1), "attention": at("core", 3)}, {"weight_decay": 0.1}),
    "biases-muon": ("starcoder2", {}, {}, {"ffn": at("dense", 2), "attention": at("dense", 3)}, {"muon": True}),
    "experts": (
        "gpt_oss",
        {},
        {},
        {"experts": at("dense", 1), "attention": at("core", 2), "head": at("dense", 3)},
        {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    ),
    "tied": ("llama", {"tie_word_embeddings": True}, {}, {"embedding": at("dense", 2)}, {"muon": True}),
    "shared-head": (
        "llama",
        {},
        {"head_factor": "embedding"},
        {"embedding": at("dense", 1), "head": at("dense", 3), "ffn": at("core", 3)},
        {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1},
    ),
    "normalised": (
        "qwen2",
        {},
        {"clone_normalization": "target", "attn_out_tap": "teacher"},
        {"attention": at("dense", 2), "ffn": at("core", 2)},
        {"gradient_accumulation_steps": 2},
    ),
}


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row} for row in batch(count, 8)]


def train(case: str, folder: Path, resume: int | None = None) -> CloneTrainer:
    torch.manual_seed(99 if resume else 0)
    family, teacher, options, switches, training = CASES[case]
    arguments = CloneArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=5,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **training,
    )
    clone = CloneModel(tiny_model(family, **teacher), 16, factor_std=0.2, **options)
    schedule = MethodSchedule(MethodConfig(parameterization=switches))
    trainer = CloneTrainer(clone, arguments, train_dataset=samples(12), callbacks=[schedule])
    if resume is not None:
        arguments.save_strategy = "no"
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_a_run_through_switches_resumes_to_the_bit_before_at_and_after_each(case: str, tmp_path: Path) -> None:
    whole = train(case, tmp_path)
    losses = {log["step"]: log["loss"] for log in whole.state.log_history if "loss" in log}
    for step in (1, 2, 3, 4):  # the steps of the switches are among them
        resumed = train(case, tmp_path, resume=step)
        assert resumed.clone.kinds == whole.clone.kinds
        assert {log["step"]: log["loss"] for log in resumed.state.log_history if "loss" in log} == losses
        for name, factor in whole.clone.factors.items():
            assert torch.equal(factor, resumed.clone.factors[name]), (step, name)
        for name, value in whole.clone.student.state_dict().items():
            assert torch.equal(value, resumed.clone.student.state_dict()[name]), (step, name)
        states = [trainer.optimizer.state_dict() for trainer in (whole, resumed)]
        assert states[0]["param_groups"] == states[1]["param_groups"]


# --- groups -----------------------------------------------------------------------------------------------------------


def groups_of(clone: CloneModel, by: str) -> list[dict[str, Any]]:
    """Parameter groups with rates of their own: all in one, by axes, or by layer and axes."""
    keys: dict[str, Any] = {
        "one": lambda name, p: 0,
        "axes": lambda name, p: p.ndim > 1,
        "layers": lambda name, p: (".layers.0." in name, ".layers.1." in name, p.ndim > 1),
    }
    found: dict[Any, list[Any]] = {}
    for name, p in clone.factors.named_parameters():
        found.setdefault(keys[by](name, p), []).append(p)
    return [{"params": found[key], "lr": 1e-3 * (i + 1)} for i, key in enumerate(sorted(found))]


@pytest.mark.parametrize("kind", [SGD, AdamW, MuonAdamW])
@pytest.mark.parametrize("by", ["one", "axes", "layers"])
@pytest.mark.parametrize("family", ["starcoder2", "gpt_oss"])
def test_groups_after_a_switch_are_those_of_a_new_optimiser(family: str, by: str, kind: Any) -> None:
    clone = CloneModel(tiny_model(family), 16, factor_std=0.2)
    optimizer = bind(kind(groups_of(clone, by), lr=1e-3), clone.factors)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = sorted({role.group for role in clone.plan.of_kind("read", "write")} - {"embedding", "head"})
    for group, new in zip(groups, ("dense", "core"), strict=False):
        clone(batch()).loss.backward()
        optimizer.step()
        clone.reparameterize({group: new})
        refresh(optimizer, clone.factors)
    fresh = kind(groups_of(clone, by), lr=1e-3)
    for ours, theirs in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]]
        assert ours["lr"] == theirs["lr"] / 2
    assert rates == [group["lr"] for group in optimizer.param_groups]
    assert scheduler.base_lrs == [2 * rate for rate in rates]
    fresh.load_state_dict(optimizer.state_dict())


def test_names_of_parameters_follow_too() -> None:
    clone = CloneModel(tiny_model("starcoder2"), 16)
    optimizer = bind(AdamW(list(clone.factors.named_parameters()), lr=1e-3), clone.factors)
    clone.reparameterize({"ffn": "dense"})
    refresh(optimizer, clone.factors)
    assert optimizer.param_groups[0]["param_names"] == list(clone.factors)


def test_two_optimisers_share_the_factors_through_a_switch() -> None:
    clone = CloneModel(tiny_model("starcoder2"), 16)
    parts = [[p for p in clone.factors.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    optimizers = [bind(SGD(part, lr=1e-2), clone.factors) for part in parts]
    clone.reparameterize({"ffn": "dense"})
    for optimizer in optimizers:
        refresh(optimizer, clone.factors)
    held = [optimizer.param_groups[0]["params"] for optimizer in optimizers]
    assert [{p.ndim > 1 for p in part} for part in held] == [{True}, {False}]
    assert sorted(map(id, held[0] + held[1])) == sorted(map(id, clone.factors.parameters()))
    before = {name: p.detach().clone() for name, p in clone.factors.items()}
    clone(batch()).loss.backward()
    truth = clone.factors.gradients()
    for optimizer in optimizers:
        optimizer.step()
    for name, p in clone.factors.items():
        torch.testing.assert_close(p, before[name] - 1e-2 * truth[name])
        assert p.grad is None


def test_a_step_after_a_switch_without_refresh_is_refused() -> None:
    clone = CloneModel(tiny_model("llama"), 16)
    optimizer = bind(SGD(clone.factors.parameters(), lr=1e-2), clone.factors)
    clone.reparameterize({"ffn": "dense"})
    clone(batch()).loss.backward()
    with pytest.raises(InputError, match="refresh"):
        optimizer.step()
    with pytest.raises(InputError, match="not bound"):
        refresh(SGD(clone.factors.parameters(), lr=1e-2), clone.factors)


@pytest.mark.parametrize("kind", ["dense", "core"])
def test_a_fused_optimiser_steps_what_was_switched_as_another_does(kind: str) -> None:
    """A fused AdamW reads factor and gradient as plain memory, whatever their strides say."""
    found = []
    for fused in (False, True):
        clone = CloneModel(tiny_model("llama"), 16, factor_std=0.2, parameterization={"attention": kind, "ffn": kind})
        optimizer = bind(AdamW(clone.factors.parameters(), lr=1e-2, fused=fused), clone.factors)
        clone(batch()).loss.backward()
        optimizer.step()
        found.append(clone.factors.state_dict())
    for name, factor in found[0].items():
        torch.testing.assert_close(found[1][name], factor, msg=name)
