"""Every option of `TrainingArguments` and `Trainer`: it works, or it is refused in one line before anything is done."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import arguments, clone, logs_of, samples, trainer_of, watch_batches
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from lowrank_clone.errors import InputError
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.arguments_trial import OPTIMIZERS
from lowrank_clone.training.options import ARGUMENTS, OPTIONS, WITHOUT_WARMUP
from lowrank_clone.training.warmup import without_idle_step

# --- the table --------------------------------------------------------------------------------------------------------


def test_every_field_of_the_arguments_is_sorted_in() -> None:
    missing = {field.name for field in dataclasses.fields(CloneArguments)} - OPTIONS.keys()
    assert not missing, f"new in transformers: say in training/options.py whether {sorted(missing)} work for a clone"


def test_every_argument_of_trainer_is_sorted_in() -> None:
    missing = set(inspect.signature(Trainer.__init__).parameters) - {"self"} - ARGUMENTS.keys()
    assert not missing, f"new in transformers: say in training/options.py whether {sorted(missing)} work for a clone"


# A value other than its default for every field. What works is shown below or in other tests of the trainer.
SET: dict[str, Any] = {
    "auto_find_batch_size": True,
    "optim_target_modules": ["q_proj"],
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "bf16": True,
    "fp16": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "torch_compile": True,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "logging_nan_inf_filter": True,
    "include_num_input_tokens_seen": "all",
    "debug": "underflow_overflow",
    "prediction_loss_only": False,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "batch_eval_metrics": True,
    "enable_jit_checkpoint": True,
    "resume_from_checkpoint": "runs/a/checkpoint-2",
    "push_to_hub": True,
    "hub_model_id": "me/student",
    "hub_strategy": "end",
    "hub_token": "hf_secret",
    "hub_private_repo": True,
    "hub_always_push": True,
    "hub_revision": "main",
    "parallelism_config": object(),
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "local_rank": 0,
    "do_predict": True,
}


@pytest.mark.parametrize("name", [name for name, reason in OPTIONS.items() if reason is not None])
def test_what_a_clone_has_no_use_for_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    if name not in {field.name for field in dataclasses.fields(CloneArguments)}:
        pytest.skip("this release of transformers has no such field")
    with pytest.raises(InputError, match=rf"^training\.{name}: got .*, expected .*; ") as caught:
        arguments(tmp_path, **{name: SET[name]})
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)


def test_a_field_that_no_release_had_is_refused_when_it_is_set() -> None:
    from lowrank_clone.training.options import check_option

    check_option("quantum_sampling", None, None)
    with pytest.raises(InputError, match=r"training.quantum_sampling: got true.*newer than this library"):
        check_option("quantum_sampling", True, False)


WORKS: list[dict[str, Any]] = [
    {"optim_args": "momentum=0.9", "optim": "sgd"},
    {"torch_empty_cache_steps": 1},
    {"logging_first_step": True, "logging_steps": 3, "log_on_each_node": False, "log_level": "error"},
    {"log_level_replica": "error", "run_name": "a", "project": "b"},
    {"trackio_space_id": "a", "trackio_bucket_id": "b", "trackio_static_space_id": "c"},
    {"skip_memory_metrics": False},
    {"eval_strategy": "epoch", "num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 32},
    {"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2, "eval_on_start": True},
    {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "metric_for_best_model": "lm"},
    {"save_only_model": True, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1},
    {"save_on_each_node": True, "save_strategy": "epoch"},
    {"restore_callback_states_from_checkpoint": True, "ignore_data_skip": True},
    {"data_seed": 7, "seed": 3},
    {"dataloader_drop_last": True, "dataloader_in_order": False, "dataloader_pin_memory": False},
    {"train_sampling_strategy": "group_by_length", "length_column_name": "size"},
    {"train_sampling_strategy": "sequential", "remove_unused_columns": False},
    {"accelerator_config": {"use_seedable_sampler": False, "dispatch_batches": True}},
    {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 3, "ddp_broadcast_buffers": False},
    {"ddp_static_graph": True, "ddp_timeout": 60},
    {"do_train": True, "do_eval": True, "tf32": False},
    {"label_names": ["labels"], "eval_strategy": "steps"},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1},
    {"lr_scheduler_type": "greedy", "eval_strategy": "steps", "eval_steps": 1},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 1},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}, "warmup_steps": 1},
    *({"optim": name} for name in OPTIMIZERS),
]


@pytest.mark.parametrize("options", WORKS, ids=lambda options: "-".join(options))
def test_the_others_train(options: dict[str, Any], tmp_path: Path) -> None:
    given = {"max_steps": 3, "save_strategy": "no", **options}
    trainer = trainer_of(tmp_path, eval_dataset=samples(4), **given)
    before = {name: value.clone() for name, value in trainer.clone.factors.state_dict().items()}
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in logs_of(trainer))
    assert all(not torch.equal(value, trainer.clone.factors[name]) for name, value in before.items())


def test_deprecated_names_still_work(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="gradient_checkpointing"):
        args = arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert args.activation_checkpointing and args.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    losses = []
    workers = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2, "dataloader_persistent_workers": True}
    for options in ({}, {**workers, "dataloader_multiprocessing_context": "fork"}):
        trainer = trainer_of(tmp_path, max_steps=2, save_strategy="no", **options)
        trainer.train()
        losses.append([log["loss"] for log in logs_of(trainer)])
    assert losses[0] == losses[1]


def test_the_order_of_the_data_has_a_seed_of_its_own(tmp_path: Path) -> None:
    orders = []
    for options in ({"data_seed": 1}, {"data_seed": 1, "seed": 5}, {"data_seed": 2}):
        trainer = trainer_of(tmp_path, max_steps=2, save_strategy="no", **options)
        seen = watch_batches(trainer)
        trainer.train()
        orders.append(torch.cat(seen))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_full_determinism_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("transformers.trainer.enable_full_determinism", called.append)
    trainer_of(tmp_path, full_determinism=True, seed=9)
    assert called == [9]


# --- what only shows when it is tried ---------------------------------------------------------------------------------

TRIED: dict[str, tuple[dict[str, Any], str]] = {
    "min-lr": ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate"),
    "wsd": ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    "lr_end": ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "must be smaller than"),
    "unknown kwargs": ({"lr_scheduler_kwargs": {"cycles": 3}}, "unexpected keyword argument 'cycles'"),
    "kwargs of nothing": (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}},
        "beside lr_scheduler_type constant; it takes none",
    ),
    "kwargs that fail late": (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}},
        "training.lr_scheduler_kwargs: got",
    ),
    "no warm-up": ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "has no warm-up; use constant_with_warmup"),
    "unknown schedule": ({"lr_scheduler_type": "cosin"}, "is not a valid SchedulerType"),
    "galore": ({"optim": "galore_adamw"}, "training.optim: got galore_adamw, expected one of adamw_torch"),
    "lomo": ({"optim": "lomo"}, "training.optim: got lomo, expected one of"),
    "optim_args": (
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        "got `momentun=0.9`, expected those of sgd: momentum",
    ),
    "optim_args of adamw": ({"optim_args": "momentum=0.9"}, "expected those of adamw_torch"),
    "optim_args without =": ({"optim": "sgd", "optim_args": "momentum"}, "got `momentum`, expected"),
    "betas": ({"adam_beta1": 1.5}, "training.adam_beta1: got 1.5, expected a number from 0"),
    "report": ({"report_to": "wandb"}, "got wandb, which is not installed"),
    "unknown report": ({"report_to": ["wand"]}, "got 'wand', expected none, all or some of"),
    "metric": ({"metric_for_best_model": "eval_perplexty"}, "got 'eval_perplexty', expected one of loss, lm"),
    "greater": ({"metric_for_best_model": "lm", "greater_is_better": True}, "expected false; all that is measured"),
    "label names": ({"label_names": ["start_positions"]}, "expected ['labels']"),
    "sampling": ({"train_sampling_strategy": "randm"}, "got 'randm', expected one of random, sequential"),
    "rebalance": ({"train_sampling_strategy": "batch_rebalance"}, "expected one of random, sequential"),
    "prefetch": ({"dataloader_prefetch_factor": 2}, "can only be set when data is loaded in a different process"),
    "persistent": ({"dataloader_persistent_workers": True}, "training.dataloader_*: persistent_workers"),
    "context": (
        {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "thread"},
        "training.dataloader_*: multiprocessing_context",
    ),
    "split": ({"accelerator_config": {"split_batches": True}}, "got split_batches True, expected False"),
    "uneven": ({"accelerator_config": {"even_batches": False}}, "got even_batches False, expected True"),
    "num_steps": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
        "use gradient_accumulation_steps",
    ),
    "loader key": ({"accelerator_config": {"splits": 1}}, "unexpected keyword argument 'splits'"),
    "no steps": ({"max_steps": 0}, "training.max_steps: got 0, expected a whole number"),
    "half a step": ({"max_steps": 2.5}, "training.max_steps: got 2.5"),
    "no epochs": ({"num_train_epochs": 0}, "training.num_train_epochs: got 0"),
    "clipping": ({"max_grad_norm": -1.0}, "training.max_grad_norm: got -1.0"),
    "seed": ({"seed": -1}, "training.seed: got -1"),
    "text": ({"learning_rate": "1e-4"}, "training.learning_rate: got '1e-4', expected a number"),
    "batch": ({"per_device_train_batch_size": 0}, "training.per_device_train_batch_size: got 0"),
    "best": ({"load_best_model_at_end": True}, "requires the save and eval strategy to match"),
}


@pytest.mark.parametrize("case", TRIED)
def test_what_would_fail_in_the_middle_fails_before(case: str, tmp_path: Path) -> None:
    options, message = TRIED[case]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        arguments(tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimiser_of_transformers_is_made_or_refused(name: str, tmp_path: Path) -> None:
    if name in OPTIMIZERS:
        assert arguments(tmp_path, optim=name).optim == name
    else:
        with pytest.raises(InputError, match=f"training.optim: got {name}"):
            arguments(tmp_path, optim=name)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(InputError, match=r"nn.DataParallel.*--launch ddp.*torchrun --nproc_per_node 4"):
        arguments(tmp_path)


@pytest.mark.parametrize(
    "variable", ["ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_DYNAMO_BACKEND"]
)
def test_what_a_launcher_asks_for_is_refused_too(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "bf16" if "PRECISION" in variable else "true")
    with pytest.raises(InputError, match=f"^{variable}: the launcher asks for"):
        arguments(tmp_path)
    monkeypatch.setenv(variable, "no")
    arguments(tmp_path)


def test_arguments_can_be_copied(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, metric_for_best_model="perplexity")
    assert dataclasses.replace(args, learning_rate=0.5).learning_rate == 0.5
    assert args.greater_is_better is False


# --- warm-up ----------------------------------------------------------------------------------------------------------

NEEDS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType if kind.value not in WITHOUT_WARMUP])
def test_no_step_of_a_warm_up_is_idle(name: str) -> None:
    """(k + 1) / (n + 1) of the rate in step k of n; afterwards, and where it began above 0, transformers' own rates."""
    steps, warmup = 12, 4
    rates = []
    for change in (lambda scheduler: scheduler, lambda scheduler: without_idle_step(scheduler, warmup)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        plain = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=NEEDS.get(name))
        scheduler = change(plain)
        assert isinstance(scheduler, LambdaLR)
        rates.append([])
        for _ in range(steps):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    theirs, ours = rates
    assert ours[warmup:] == theirs[warmup:]
    assert ours[:warmup] == (pytest.approx([0.4, 0.8, 1.2, 1.6]) if theirs[0] == 0 else theirs[:warmup])
    assert ours[0] > 0


@pytest.mark.parametrize("stop", [2, 5])
def test_a_warm_up_is_resumed_where_it_was(stop: int, tmp_path: Path) -> None:
    options = {"warmup_steps": 4, "lr_scheduler_type": "cosine", "max_steps": 8, "save_steps": stop}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    rates = [log["learning_rate"] for log in logs_of(whole)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    resumed = trainer_of(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert [log["learning_rate"] for log in logs_of(resumed)] == rates
    for name, factor in whole.clone.factors.items():
        assert torch.equal(factor, resumed.clone.factors[name]), name


def test_a_share_of_the_run_is_a_warm_up_too(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, warmup_steps=0.25, max_steps=8, lr_scheduler_type="constant_with_warmup")
    trainer.train()
    assert [log["learning_rate"] for log in logs_of(trainer)] == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 6])


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    from lowrank_clone.training.trainer import CloneTrainer

    with pytest.raises(InputError, match="got args of type TrainingArguments, expected CloneArguments"):
        CloneTrainer(clone(), TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
