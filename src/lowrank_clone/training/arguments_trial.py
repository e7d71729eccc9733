"""Training arguments tried out on one small parameter, so that what would fail in the middle of a run fails before."""

from __future__ import annotations

import math
import os
import warnings

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ..errors import InputError
from .options import WITHOUT_WARMUP
from .warmup import without_idle_step

OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
"""What `training.optim` may name, and the keys that each takes from `training.optim_args`."""
# Kinds of schedule for which transformers drops `lr_scheduler_kwargs` without a word.
WITHOUT_KWARGS = ("constant", "constant_with_warmup")
SAMPLING = ("random", "sequential", "group_by_length")
LOSSES = ("loss", "lm", "kl", "clone", "perplexity")
"""What an evaluation measures, each under `eval_NAME`, or `eval_SET_NAME` where there are several sets."""
INSTEAD = "a clone is trained by DDP or FSDP2 (lrc train RECIPE --launch fsdp2 --processes N)"
# What `accelerate launch` asks for by these variables beside its own devices and processes.
LAUNCHER = {
    "ACCELERATE_MIXED_PRECISION": "the student's precision is `student.dtype`",
    "ACCELERATE_DYNAMO_BACKEND": "compile with method.compile (CloneModel.compile_layers)",
    "ACCELERATE_USE_MEGATRON_LM": INSTEAD,
    "ACCELERATE_USE_PARALLELISM_CONFIG": INSTEAD,
}


def try_arguments(args: TrainingArguments) -> None:
    """Try out whatever only shows when it is made.

    Raises:
        InputError: An optimiser, a schedule, a loader or a report can't be made, or a name means nothing.
    """
    _try_optimizer(args)
    _check_reports(args)
    _check_names(args)
    _check_devices(args)
    workers = {
        name: getattr(args, f"dataloader_{name}")
        for name in ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context", "in_order")
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DataLoader(TensorDataset(torch.zeros(1)), **workers)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"training.dataloader_*: {_one_line(error)}") from error


def _try_optimizer(args: TrainingArguments) -> None:
    name = OptimizerNames(args.optim).value
    if name not in OPTIMIZERS:
        raise InputError(
            f"training.optim: got {name}, expected one of {', '.join(OPTIMIZERS)}, or training.muon; CloneTrainer "
            "takes any torch optimiser over clone.factors.parameters() as optimizers="
        )
    given = [part.partition("=") for part in (args.optim_args or "").replace(" ", "").split(",") if part]
    for key, equals, value in given:
        if key not in OPTIMIZERS[name] or not equals or not value:
            takes = ", ".join(f"{key}=.." for key in OPTIMIZERS[name]) or "none"
            raise InputError(f"training.optim_args: got `{key}{equals}{value}`, expected those of {name}: {takes}")
    parameter = nn.Parameter(torch.zeros(2, 2))
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([{"params": [parameter], "weight_decay": args.weight_decay}], **options)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"training.optim: {name} can't be made: {_one_line(error)}") from error
    _try_schedule(args, optimizer)


def _try_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    name, options = SchedulerType(args.lr_scheduler_type).value, args.lr_scheduler_kwargs
    if options is not None and not isinstance(options, dict):
        raise InputError(f"training.lr_scheduler_kwargs: got {options!r}, expected names and values")
    if name in WITHOUT_WARMUP and args.warmup_steps:
        raise InputError(
            f"training.warmup_steps: got {args.warmup_steps:g} beside lr_scheduler_type {name}, which has no warm-up; "
            "use constant_with_warmup, or leave it out"
        )
    if name in WITHOUT_KWARGS and options:
        raise InputError(f"training.lr_scheduler_kwargs: got {options} beside lr_scheduler_type {name}; it takes none")
    steps = args.max_steps if args.max_steps > 0 else 1000
    warmup = args.get_warmup_steps(steps)
    try:
        schedule = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=options)
        schedule = without_idle_step(schedule, warmup)
        if isinstance(schedule, LambdaLR):
            places = sorted({0, min(warmup, steps - 1), steps // 2, steps - 1})
            rates = [rate(step) for rate in schedule.lr_lambdas for step in places]
            if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
                raise ValueError(f"its rates are {', '.join(f'{rate:g}' for rate in rates)} of the learning rate")
    except (ValueError, TypeError, ArithmeticError, KeyError) as error:
        raise InputError(
            f"training.lr_scheduler_kwargs: got {options or 'nothing'}, expected what lr_scheduler_type {name} needs: "
            f"{_one_line(error)}"
        ) from error


def _check_reports(args: TrainingArguments) -> None:
    known, installed = set(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in known:
            raise InputError(
                f"training.report_to: got {name!r}, expected none, all or some of {', '.join(sorted(known))}"
            )
        if name not in installed and name != "flyte":  # which transformers does not look for
            raise InputError(f"training.report_to: got {name}, which is not installed; install it, or give none")


def _check_names(args: TrainingArguments) -> None:
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_").rpartition("_")[2] not in LOSSES:
        raise InputError(
            f"training.metric_for_best_model: got {metric!r}, expected one of {', '.join(LOSSES)}, or SET_NAME where "
            "eval_dataset names several sets"
        )
    if metric is not None and args.greater_is_better:
        raise InputError("training.greater_is_better: got true, expected false; all that is measured is a loss")
    if args.label_names not in (None, [], ["labels"]):
        raise InputError(
            f"training.label_names: got {args.label_names}, expected ['labels'], which is what rows may hold"
        )
    if args.train_sampling_strategy not in SAMPLING:
        raise InputError(
            f"training.train_sampling_strategy: got {args.train_sampling_strategy!r}, expected one of "
            f"{', '.join(SAMPLING)}"
        )


def _check_devices(args: TrainingArguments) -> None:
    for variable, instead in LAUNCHER.items():
        if os.environ.get(variable, "no").lower() not in ("", "0", "no", "false"):
            raise InputError(f"{variable}: the launcher asks for {os.environ[variable]}, expected no; {instead}")
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs in one process would be trained by nn.DataParallel, which a clone is not made for; "
            "start `lrc train RECIPE --launch ddp`, or "
            f"`torchrun --nproc_per_node {args.n_gpu}`, or set CUDA_VISIBLE_DEVICES=0"
        )
    loader = args.accelerator_config
    assert isinstance(loader, AcceleratorConfig)  # since __post_init__
    for name, expected in {"split_batches": False, "even_batches": True, "use_configured_state": False}.items():
        if getattr(loader, name) != expected:
            raise InputError(f"training.accelerator_config: got {name} {not expected}, expected {expected}")
    if loader.gradient_accumulation_kwargs:
        raise InputError(
            f"training.accelerator_config: got gradient_accumulation_kwargs {loader.gradient_accumulation_kwargs}, "
            "expected none; use gradient_accumulation_steps"
        )
    if args.world_size > 1 and args.train_sampling_strategy == "group_by_length":
        raise InputError(
            "training.train_sampling_strategy: got group_by_length in several processes, each of which would sort by "
            "itself; expected random or sequential"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
