"""What a clone makes of every option of `transformers.Trainer`: each field of its arguments, each argument of its own.

None: it works, and a test shows it. Text: it is refused when it is set to anything but its default, for this reason. A
test fails when a transformers release has an option that is not sorted in here. Needs no PyTorch, so that recipes are
checked at once; what can only be told by trying it is in `arguments_trial.py`.
"""

from __future__ import annotations

from typing import Any

from ..errors import InputError

# Kinds of schedule for which transformers drops `warmup_steps` without a word.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")

_LOSSES = "a clone is evaluated by its losses, and the logits of a batch never exist as a whole"
_PREDICTIONS = f"{_LOSSES}, so there are no predictions to collect"
_HUB = "nothing is uploaded while a run goes; upload the finished student with `hf upload NAME FOLDER/student`"
_COMPILE = "compile with method.compile (CloneModel.compile_layers), layer by layer, so that taps stay readable"
_SHARDING = (
    "the launcher says how processes train together: `lrc train RECIPE --launch ddp` or `--launch fsdp2`, or "
    "`accelerate launch` with one of recipes/accelerate/*.yaml"
)
_PRECISION = (
    "the student's precision is `student.dtype` (CloneModel(dtype=torch.bfloat16)), its factors are float32 in any case"
)
_LIGER = "its kernels replace modules that taps read; the LM and KL losses are fused already"

OPTIONS: dict[str, str | None] = {
    # How long, and in which pieces
    "output_dir": None,
    "per_device_train_batch_size": None,
    "per_device_eval_batch_size": None,
    "gradient_accumulation_steps": None,
    "num_train_epochs": None,
    "max_steps": None,
    "max_hours": None,
    "rehearse": None,
    "auto_find_batch_size": "it starts again after running out of memory, from factors that were trained already; see "
    "`lrc plan` for what fits",
    # The step
    "learning_rate": None,
    "lr_scheduler_type": None,
    "lr_scheduler_kwargs": None,
    "warmup_steps": None,
    "optim": None,
    "optim_args": None,
    "optim_target_modules": "it names modules; a clone trains factors, all of them",
    "weight_decay": None,
    "adam_beta1": None,
    "adam_beta2": None,
    "adam_epsilon": None,
    "max_grad_norm": None,
    "muon": None,
    "muon_momentum": None,
    "on_spike": None,
    "spike_deviations": None,
    "spike_window": None,
    "spike_limit": None,
    # The loss
    "average_tokens_across_devices": None,  # means over all tokens of a step, whatever it says
    "label_smoothing_factor": "the loss is the clone's own; its KL to the teacher softens targets (method.temperature)",
    "neftune_noise_alpha": "noise on embeddings would be in the student's taps and not in the teacher's",
    # Precision, memory, speed
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "bf16_full_eval": f"it would cast the student for good; {_PRECISION}",
    "fp16_full_eval": f"it would cast the student for good; {_PRECISION}",
    "tf32": None,
    "activation_checkpointing": None,
    "activation_checkpointing_kwargs": None,
    "gradient_checkpointing": None,
    "gradient_checkpointing_kwargs": None,
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "training keeps no cache; the student's config keeps its own use_cache",
    "torch_empty_cache_steps": None,
    # Logs
    "log_taps": None,
    "logging_strategy": None,
    "logging_steps": None,
    "logging_first_step": None,
    "log_on_each_node": None,
    "logging_nan_inf_filter": "a non-finite loss stops training, and is not hidden in an average",
    "include_num_input_tokens_seen": "tokens are always counted, padding left out, and logged as `tokens`",
    "log_level": None,
    "log_level_replica": None,
    "disable_tqdm": None,
    "report_to": None,
    "run_name": None,
    "project": None,
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
    "debug": "it looks for overflows in 16-bit modules; a non-finite loss stops training and names the first term",
    "skip_memory_metrics": None,
    # Evaluation
    "eval_strategy": None,
    "eval_steps": None,
    "eval_delay": None,
    "eval_on_start": None,
    "prediction_loss_only": _PREDICTIONS,
    "eval_do_concat_batches": _PREDICTIONS,
    "eval_use_gather_object": _PREDICTIONS,
    "eval_accumulation_steps": _PREDICTIONS,
    "include_for_metrics": _PREDICTIONS,
    "batch_eval_metrics": _PREDICTIONS,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "load_best_model_at_end": None,
    "label_names": None,
    # Checkpoints
    "save_strategy": None,
    "save_steps": None,
    "save_total_limit": None,
    "save_minutes": None,
    "save_on_each_node": None,
    "save_only_model": None,
    "enable_jit_checkpoint": "it saves in the middle of a step, which can't be resumed exactly; set save_steps",
    "ignore_data_skip": None,
    "restore_callback_states_from_checkpoint": None,
    "resume_from_checkpoint": "no Trainer reads it; give `--resume`, or trainer.train(resume_from_checkpoint=...)",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_token": f"{_HUB}; tokens belong into HF_TOKEN or `hf auth login`, not into a recipe",
    "hub_private_repo": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    # Chance
    "seed": None,
    "data_seed": None,
    "full_determinism": None,
    # Data
    "dataloader_drop_last": None,
    "dataloader_num_workers": None,
    "dataloader_pin_memory": None,
    "dataloader_persistent_workers": None,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
    "dataloader_in_order": None,
    "remove_unused_columns": None,
    "train_sampling_strategy": None,
    "length_column_name": None,
    # Devices and processes
    "use_cpu": None,
    "accelerator_config": None,
    "parallelism_config": _SHARDING,
    "ddp_find_unused_parameters": None,
    "ddp_bucket_cap_mb": None,
    "ddp_broadcast_buffers": None,
    "ddp_static_graph": None,
    "ddp_backend": None,
    "ddp_timeout": None,
    "teacher_sharding": None,
    "fsdp": _SHARDING,
    "fsdp_config": _SHARDING,
    "deepspeed": _SHARDING,
    "local_rank": "no Trainer reads it; torchrun tells processes who they are",
    # Read by scripts of the user's own, by no Trainer
    "do_train": None,
    "do_eval": None,
    "do_predict": f"no Trainer reads it; {_LOSSES}",
}

ARGUMENTS: dict[str, str | None] = {
    "model": None,
    "args": None,
    "data_collator": None,
    "train_dataset": None,
    "eval_dataset": None,
    "processing_class": None,
    "callbacks": None,
    "optimizers": None,
    "optimizer_cls_and_kwargs": None,
    "model_init": "a clone is made once, from a teacher that is loaded once; make a CloneTrainer for each clone",
    "compute_loss_func": "the loss is the clone's own, see `Objective`",
    "compute_metrics": _PREDICTIONS,
    "preprocess_logits_for_metrics": _PREDICTIONS,
}


def check_option(name: str, value: Any, default: Any) -> None:
    """Refuse a training argument that a clone has no use for, unless it is left at its default.

    Raises:
        InputError: It is set, or no release that this library knows has it.
    """
    reason = OPTIONS.get(name, "this release of transformers is newer than this library, which does not know it yet")
    if reason is not None and value != default and (value or default):
        raise InputError(f"training.{name}: got {_shown(name, value)}, expected {_shown(name, default)}; {reason}")


def check_argument(name: str, value: Any) -> None:
    """Refuse an argument of `Trainer` that a clone has no use for.

    Raises:
        InputError: It is given.
    """
    reason = ARGUMENTS.get(name, "this release of transformers is newer than this library, which does not know it yet")
    if reason is not None and value is not None:
        raise InputError(f"CloneTrainer: got `{name}`, which has no use here; {reason}")


def _shown(name: str, value: Any) -> str:
    if name.endswith("token") and value:
        return "a token"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return repr(value)
