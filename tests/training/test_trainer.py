"""`CloneTrainer`: what it optimises, counts, logs, saves; resuming bit for bit; failures leave the last good state."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error
from safetensors.torch import load_file
from tiny import batch, tiny_model
from tiny_tokenizer import tiny_tokenizer
from tiny_trainer import arguments, clone, logs_of, samples, trainer_of, unequal_samples, watch_batches
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

from lowrank_clone.errors import InputError, NonFiniteLoss
from lowrank_clone.model import CloneModel
from lowrank_clone.training import checkpoint
from lowrank_clone.training.last_checkpoint import last_checkpoint
from lowrank_clone.training.metrics import MetricsFile
from lowrank_clone.training.optim import bind
from lowrank_clone.training.trainer import CloneTrainer


def digest(model: PreTrainedModel) -> str:
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_equals_a_plain_loop_with_a_bound_optimiser(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.5, max_steps=4, save_strategy="no"
    )
    order = watch_batches(trainer)
    trainer.train()
    model = clone().train()
    optimizer = bind(torch.optim.SGD(model.factors.parameters(), lr=1e-3), model.factors, max_grad_norm=0.5)
    for ids, log in zip(order, logs_of(trainer), strict=True):
        loss = model(ids).loss
        assert log["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        loss.backward()
        optimizer.step()
    for name, factor in model.factors.items():
        assert relative_error(trainer.clone.factors[name].detach(), factor.detach()) < 1e-6, name


def test_the_teacher_is_unchanged_and_in_eval_mode_throughout(tmp_path: Path) -> None:
    model, modes = clone(), []
    before = digest(model.teacher)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            modes.append((model.student.training, any(m.training for m in model.teacher.modules())))

    trainer_of(tmp_path, model, [Watch()], eval_dataset=samples(4), eval_strategy="steps", eval_steps=2).train()
    assert modes == [(True, False)] * 6
    assert digest(model.teacher) == before


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer = CloneTrainer(
        clone(), arguments(tmp_path, max_steps=20, learning_rate=1e-2, save_strategy="no"), train_dataset=samples(2)
    )
    trainer.train()
    losses = [log["loss"] for log in logs_of(trainer)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_logged_gradient_norm_is_that_of_the_factors_before_clipping(tmp_path: Path) -> None:
    norms = {}
    for clip in (0.0, 1e-3, 1e3):
        trainer = trainer_of(tmp_path, max_steps=1, save_strategy="no", max_grad_norm=clip)
        order = watch_batches(trainer)
        trainer.train()
        norms[clip] = logs_of(trainer)[0]["grad_norm"]
    model = clone().train()
    model(order[0]).loss.backward()
    model.factors.pull()
    expected = float(torch.stack([p.grad.norm() for p in model.factors.parameters()]).norm())
    assert all(norm == pytest.approx(expected, rel=1e-5) for norm in norms.values())


def test_weight_decay_is_for_matrices_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, weight_decay=0.1)
    trainer.create_optimizer()
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, factor in trainer.clone.factors.items():
        assert decay.pop(id(factor)) == (0.1 if factor.ndim > 1 else 0.0), name
    assert not decay


def test_published_beta2_is_the_default(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    assert trainer.create_optimizer().param_groups[0]["betas"] == (0.9, 0.999)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    runs = {}
    for checkpointing in (False, True):
        trainer = trainer_of(tmp_path, activation_checkpointing=checkpointing, save_strategy="no", max_steps=3)
        trainer.train()
        runs[checkpointing] = [log["loss"] for log in logs_of(trainer)]
    assert runs[True] == pytest.approx(runs[False], rel=1e-6)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_every_term_is_logged_and_they_add_up(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="no")
    trainer.train()
    names = {f"tap/{tap.name}" for tap in trainer.clone.plan.taps}
    for log in logs_of(trainer):
        assert {"lm", "kl", "clone", "grad_norm", "learning_rate", "tokens", *names} <= log.keys()
        assert log["clone"] == pytest.approx(sum(log[name] for name in names), rel=1e-5)
        assert log["loss"] == pytest.approx(log["lm"] + log["kl"] + 0.2 * log["clone"], rel=1e-5)
    assert [log["tokens"] for log in logs_of(trainer)] == [16 * step for step in range(1, 7)]


def test_a_log_over_several_steps_is_their_mean(tmp_path: Path) -> None:
    each, every_third = trainer_of(tmp_path), trainer_of(tmp_path, logging_steps=3)
    for trainer in (each, every_third):
        trainer.train()
    single, third = logs_of(each), logs_of(every_third)
    assert len(third) == 2
    for name in ("loss", "lm", "kl", "clone", "tap/model.layers.0.mlp.down_proj.weight"):
        means = [sum(log[name] for log in single[i : i + 3]) / 3 for i in (0, 3)]
        assert [log[name] for log in third] == pytest.approx(means, rel=1e-5), name


def test_taps_can_be_left_out_of_the_log(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, log_taps=False, save_strategy="no", max_steps=2)
    trainer.train()
    assert all("clone" in log and not any(name.startswith("tap/") for name in log) for log in logs_of(trainer))


def test_terms_that_are_off_are_not_logged(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, clone(kl_weight=0.0, clone_weight=0.0), save_strategy="no", max_steps=2)
    trainer.train()
    assert all("lm" in log and "kl" not in log and "clone" not in log for log in logs_of(trainer))


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_is_a_mean_over_tokens_whatever_the_batches(batch_size: int, tmp_path: Path) -> None:
    model = clone(kl_weight=0.7)
    trainer = trainer_of(tmp_path, model, eval_dataset=unequal_samples(), per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate()
    inputs = {key: torch.stack([row[key] for row in unequal_samples()]) for key in unequal_samples()[0]}
    with torch.no_grad():
        truth = model.eval()(**inputs)
    for name in ("loss", "lm", "clone"):
        assert metrics[f"eval_{name}"] == pytest.approx(float(truth[name]), rel=1e-5), name
    assert metrics["eval_kl"] == pytest.approx(float(truth.kl), rel=1e-3)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(float(truth.lm)), rel=1e-4)


def test_evaluation_s_language_model_loss_is_cross_entropy_of_the_exported_student(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=samples(5, seed=4))
    metrics = trainer.evaluate()
    ids = torch.stack([row["input_ids"] for row in samples(5, seed=4)])
    logits = trainer.clone.student.eval()(ids).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert metrics["eval_lm"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_evaluation_between_steps_changes_no_step(tmp_path: Path) -> None:
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}):
        trainer = trainer_of(tmp_path, eval_dataset=samples(4, seed=9), save_strategy="no", logging_steps=2, **options)
        trainer.train()
        runs.append(trainer)
    keys = ("loss", "lm", "kl", "clone", "tokens", "grad_norm")
    assert [[log[key] for key in keys] for log in logs_of(runs[0])] == [
        [log[key] for key in keys] for log in logs_of(runs[1])
    ]
    assert sum("eval_lm" in log for log in runs[1].state.log_history) == 7


def test_the_best_model_by_evaluation_loss_is_loaded_at_the_end(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        eval_dataset=samples(4),
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=1.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=6,
    )
    trainer.train()
    evaluations = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(evaluations, key=evaluations.get)
    assert best != 6, "the learning rate is meant to be too large"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations[best], rel=1e-6)


# --- resuming ---------------------------------------------------------------------------------------------------------

RESUMED = {
    "plain": ({}, {}),
    "accumulated": ({}, {"gradient_accumulation_steps": 2}),
    "normalised": ({"clone_normalization": "target"}, {}),
    "normalised-accumulated": ({"clone_normalization": "target"}, {"gradient_accumulation_steps": 2}),
    "decay-and-schedule": (
        {},
        {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2, "max_grad_norm": 0.3},
    ),
    "dropout": ({"teacher": {"attention_dropout": 0.3}}, {}),
    "bfloat16": ({"dtype": torch.bfloat16}, {}),
    "muon": ({}, {"muon": True, "weight_decay": 0.1}),
    "muon-dense": ({"parameterization": {"embedding": "dense", "ffn": "dense"}}, {"muon": True}),
    "dense-and-core": ({"parameterization": {"embedding": "dense", "ffn": "core"}}, {}),
}


def resumable(options: dict[str, Any]) -> CloneModel:
    options = dict(options)
    return CloneModel(tiny_model("llama", **options.pop("teacher", {})), 16, factor_std=0.2, **options)


@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(case: str, stop: int, tmp_path: Path) -> None:
    model_options, options = RESUMED[case]

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == stop

    whole = trainer_of(tmp_path / "whole", resumable(model_options), [MetricsFile(tmp_path / "whole.jsonl")], **options)
    whole.train()
    folder, metrics = tmp_path / "resumed", tmp_path / "resumed.jsonl"
    trainer_of(folder, resumable(model_options), [Stop(), MetricsFile(metrics)], **options).train()
    torch.manual_seed(123)
    resumed = trainer_of(folder, resumable(model_options), [MetricsFile(metrics)], **options)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(folder)))

    for name, factor in whole.clone.factors.items():
        assert torch.equal(factor, resumed.clone.factors[name]), name
    for name, value in whole.clone.student.state_dict().items():
        assert torch.equal(value, resumed.clone.student.state_dict()[name]), name
    timings = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in timings} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole.jsonl", metrics)
    ]
    steps = [[line for line in run if "loss" in line] for run in lines]
    assert [line["step"] for line in steps[1]] == [1, 2, 3, 4, 5, 6]
    assert steps[1] == steps[0]


def test_a_checkpoint_holds_the_factors_and_nothing_of_the_teacher(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, clone(clone_normalization="target"), max_steps=2)
    trainer.train()
    folder = last_checkpoint(tmp_path)
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == [
        "factors.safetensors",
        "manifest.json",
        "optimizer.pt",
        "plan.json",
        "rng_state.pth",
        "running.json",
        "scheduler.pt",
        "trainer_state.json",
    ]
    tensors = load_file(folder / "factors.safetensors")
    expected = {f"factor:{name}" for name in trainer.clone.factors}
    assert {name for name in tensors if name.startswith("factor:")} == expected
    assert all(torch.equal(tensors[f"factor:{name}"], value) for name, value in trainer.clone.factors.items())
    teacher = {tuple(value.shape) for value in trainer.clone.teacher.state_dict().values()}
    assert not teacher & {tuple(value.shape) for value in tensors.values() if value.ndim > 1}


def test_checkpoints_load_without_running_code(tmp_path: Path) -> None:
    import numpy as np

    trainer_of(tmp_path, max_steps=2).train()
    folder = last_checkpoint(tmp_path)
    assert folder is not None
    numpy_state = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.UInt32DType]
    with torch.serialization.safe_globals(numpy_state):  # numpy's random state, as Trainer itself allows it
        loaded = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pt*")}
    assert loaded.keys() == {"optimizer.pt", "rng_state.pth", "scheduler.pt"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: CloneModel(tiny_model("llama"), 12), "its student_width is 16, this run's is 12"),
        (lambda: CloneModel(tiny_model("llama", hidden_size=32), 16), "its teacher_width is 24, this run's is 32"),
        (lambda: CloneModel(tiny_model("mistral"), 16), "its model_type is llama, this run's is mistral"),
        (lambda: CloneModel(tiny_model("llama", intermediate_size=48), 16), "its parameter `model.layers.0.mlp"),
        (lambda: CloneModel(tiny_model("llama", num_hidden_layers=3), 16), "its parameter `model.layers.2"),
        (lambda: CloneModel(tiny_model("llama", seed=5), 16), "its teacher has the same shapes but other weights"),
    ],
    ids=["width", "teacher-width", "family", "ffn", "depth", "weights"],
)
def test_resuming_another_run_is_refused(other: Any, message: str, tmp_path: Path) -> None:
    trainer_of(tmp_path, max_steps=2).train()
    folder, model = last_checkpoint(tmp_path), other()
    before = {name: value.clone() for name, value in model.factors.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        trainer_of(tmp_path, model).train(resume_from_checkpoint=str(folder))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, model.factors[name]) for name, value in before.items())


def test_resuming_from_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(InputError, match="no checkpoint of a clone there"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_old_checkpoints_are_rotated_out(tmp_path: Path) -> None:
    trainer_of(tmp_path, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    trainer_of(tmp_path / "run", callbacks=[MetricsFile(path)], max_steps=5).train()  # the last checkpoint is of step 5
    trainer_of(tmp_path / "run", callbacks=[MetricsFile(path)]).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
    )
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if "grad_norm" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


# --- failures ---------------------------------------------------------------------------------------------------------


class Poison(TrainerCallback):
    """Makes one parameter infinite in the step after `step`, as a bad batch would make its loss."""

    def __init__(self, model: CloneModel, step: int) -> None:
        self.step, self.poisoned = step, False
        model.student.lm_head.register_forward_pre_hook(self._poison)

    def _poison(self, module: nn.Module, args: Any) -> Any:
        return (args[0] * math.nan, *args[1:]) if self.poisoned else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.poisoned = state.global_step == self.step


@pytest.mark.parametrize("normalization", ["none", "target"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("step", [2, 3])
def test_a_non_finite_loss_stops_with_the_last_good_state(
    step: int, options: dict[str, Any], normalization: str, tmp_path: Path
) -> None:
    whole = trainer_of(tmp_path / "whole", clone(clone_normalization=normalization), **options)
    whole.train()
    model = clone(clone_normalization=normalization)
    trainer = trainer_of(tmp_path / "run", model, [Poison(model, step)], on_spike="stop", **options)
    size = 2 * options.get("gradient_accumulation_steps", 1)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"step {step + 1}: the gradient norm is nan")
    assert "lm nan" in message and f"samples {step * size} to {(step + 1) * size - 1}" in message
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / f"checkpoint-{step}"
    assert all(factor.isfinite().all() for factor in model.factors.values())

    resumed = trainer_of(tmp_path / "run", clone(clone_normalization=normalization), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    for name, factor in whole.clone.factors.items():
        assert torch.equal(factor, resumed.clone.factors[name]), name


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("part", ["factors", "optimizer"])
def test_a_full_disk_keeps_the_earlier_checkpoint(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                if part == "factors":
                    monkeypatch.setattr(checkpoint, "save_file", full_disk)
                else:
                    monkeypatch.setattr(torch, "save", full_disk)

    before = tmp_path / "checkpoint-2"
    with pytest.raises(InputError, match="No space left on device") as caught:
        trainer_of(tmp_path, callbacks=[Fill()]).train()
    assert str(before) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    monkeypatch.undo()
    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(before))
    assert resumed.state.global_step == 6


def test_a_full_disk_at_a_non_finite_loss_keeps_the_checkpoint_of_that_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clone()

    class Fill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                monkeypatch.setattr(checkpoint, "save_file", full_disk)

    with pytest.raises(NonFiniteLoss):
        trainer_of(tmp_path, model, [Poison(model, 2), Fill()], on_spike="stop").train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


# --- saving the student -----------------------------------------------------------------------------------------------


def test_save_model_writes_a_plain_checkpoint(tmp_path: Path) -> None:
    model = CloneModel(tiny_model("llama", vocab_size=258), 16)
    trainer = trainer_of(tmp_path / "run", model, max_steps=2, processing_class=tiny_tokenizer(), save_strategy="no")
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", attn_implementation="eager")
    assert student.config.hidden_size == 16
    assert torch.equal(student(batch()).logits, trainer.clone.student.eval()(batch()).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == tiny_tokenizer().get_vocab()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a model of type LlamaForCausalLM, expected a CloneModel"):
        CloneTrainer(tiny_model("llama"), arguments(tmp_path))
