"""What `CloneTrainer` is given, checked before anything is done with it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback
from transformers.optimization import GreedyLR
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import has_length

from ..errors import InputError
from ..execution.checkpointing import checkpointing_options
from ..factors.factors import Factors
from ..model import CloneModel
from ..objective.batch import NAMES, checked_batch
from .arguments import CloneArguments
from .arguments_trial import LOSSES
from .batches import CheckedCollator, padded
from .optim import MuonAdamW, bind, is_bound, plain
from .options import ARGUMENTS, check_argument


def taken(positional: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Trainer.__init__` by name, with what a clone needs in the places of its defaults.

    Raises:
        InputError: An argument is unknown, has no use for a clone, or does not fit the others.
    """
    given = _by_name(positional, named)
    for name, value in given.items():
        check_argument(name, value)
    model, args = given.get("model"), given.get("args")
    if not isinstance(model, CloneModel):
        raise InputError(f"CloneTrainer: got a model of type {type(model).__name__}, expected a CloneModel")
    if args is None:
        args = CloneArguments(output_dir="tmp_trainer")
    if not isinstance(args, CloneArguments):
        raise InputError(f"CloneTrainer: got args of type {type(args).__name__}, expected CloneArguments")
    if args.activation_checkpointing:
        options: Any = args.activation_checkpointing_kwargs
        checkpointing_options(model.config, options)
    _check_optimizers(given, args, model.factors)
    _check_callbacks(given.get("callbacks"))
    _check_data(given, args, model.vocab_size)
    _check_metric(given.get("eval_dataset"), args, model)
    collator = CheckedCollator(given.get("data_collator"), model.vocab_size, keeps_rows=args.world_size > 1)
    if args.muon:
        betas = (args.adam_beta1, args.adam_beta2)
        muon = {"lr": args.learning_rate, "momentum": args.muon_momentum, "betas": betas, "eps": args.adam_epsilon}
        given["optimizer_cls_and_kwargs"] = (MuonAdamW, muon)
    return {**given, "args": args, "data_collator": collator}


def check_optimizer(optimizer: Any, factors: Factors) -> None:
    """Bind an optimiser to the factors unless it is, and make sure that it trains all of them.

    Raises:
        InputError: It is no torch optimiser, holds what is no factor, or misses some.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"the optimiser: got a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    one = plain(optimizer)
    if callable(vars(type(one)).get("eval")):
        raise InputError(
            f"the optimiser: {type(one).__name__} keeps other weights for evaluation than for training, which the "
            "student would not get; expected one that steps the factors themselves"
        )
    closure = inspect.signature(type(one).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"the optimiser: {type(one).__name__} evaluates the loss by itself, for which Trainer has no way; "
            "expected one whose step takes nothing"
        )
    if not is_bound(optimizer, factors):
        bind(optimizer, factors)
    held = {id(p) for group in one.param_groups for p in group["params"]}
    missed = [name for name, factor in factors.named_parameters() if factor.requires_grad and id(factor) not in held]
    if missed:
        raise InputError(
            f"the optimiser holds {len(held)} factors and misses {len(missed)}, the first `{missed[0]}`, which would "
            "never change; give it clone.factors.parameters(), or freeze those with requires_grad_(False)"
        )


def check_enough(rows: int, args: CloneArguments) -> None:
    """Make sure that something is trained on a data set of so many rows.

    Raises:
        InputError: An epoch would not have a single batch.
    """
    whole = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < whole:
        raise InputError(
            f"training.dataloader_drop_last: {rows} rows are fewer than one batch of {whole}, so nothing would be "
            "trained; lower training.per_device_train_batch_size, or give more data"
        )


def _by_name(positional: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    unknown = [name for name in named if name not in known]
    if unknown:
        renamed = {"tokenizer": "processing_class"}.get(unknown[0])
        close = [renamed] if renamed else difflib.get_close_matches(unknown[0], known, n=1)
        hint = (
            f"; did you mean `{close[0]}`?"
            if close
            else f"; it takes {', '.join(k for k in known if not ARGUMENTS[k])}"
        )
        raise InputError(f"CloneTrainer: unknown argument `{unknown[0]}`{hint}")
    if len(positional) > len(known):
        raise InputError(f"CloneTrainer: got {len(positional)} arguments, expected at most {len(known)}")
    by_place = dict(zip(known, positional, strict=False))
    if twice := sorted(by_place.keys() & named.keys()):
        raise InputError(f"CloneTrainer: got `{twice[0]}` twice, by place and by name")
    return {name: value for name, value in {**by_place, **named}.items() if value is not None}


def _check_optimizers(given: dict[str, Any], args: CloneArguments, factors: Factors) -> None:
    pair, recipe = given.get("optimizers", (None, None)), given.get("optimizer_cls_and_kwargs")
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"optimizers: got {type(pair).__name__}, expected (optimizer or None, scheduler or None)")
    optimizer, scheduler = pair
    rivals = [
        name
        for name, value in {
            "optimizers": optimizer,
            "optimizer_cls_and_kwargs": recipe,
            "training.muon": args.muon or None,
        }.items()
        if value is not None
    ]
    if len(rivals) > 1:
        raise InputError(f"CloneTrainer: got {' and '.join(rivals)}, expected one of them; each names the optimiser")
    if scheduler is not None and (
        optimizer is None
        or not isinstance(scheduler, (LRScheduler, GreedyLR))
        or plain(scheduler.optimizer) is not plain(optimizer)
    ):
        raise InputError(
            f"optimizers: got a scheduler ({type(scheduler).__name__}) that does not drive the optimiser beside it, "
            "expected (optimizer, scheduler made for it); its rates would reach nothing"
        )
    if optimizer is not None:
        check_optimizer(optimizer, factors)
    if recipe is not None:
        _try_recipe(recipe)


def _try_recipe(recipe: Any) -> None:
    """An optimiser of this class and these options, made for two groups as Trainer's are, and a step of it."""
    try:
        kind, options = recipe
        if not is_optimizer_factory(kind) and "params" not in options:
            trial = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))]
            optimizer = kind([{"params": [parameter]} for parameter in trial], **options)
            for parameter in trial:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optimizer_cls_and_kwargs: {' '.join(str(error).split())}") from error


def _check_callbacks(callbacks: Any) -> None:
    if callbacks is None:
        return
    for one in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        if not isinstance(one, TrainerCallback) and not (isinstance(one, type) and issubclass(one, TrainerCallback)):
            raise InputError(f"callbacks: got a {type(one).__name__}, expected a list of TrainerCallback")
    if not isinstance(callbacks, list):
        raise InputError(f"callbacks: got a {type(callbacks).__name__}, expected a list of TrainerCallback")


def _check_first_row(name: str, rows: Any, given: dict[str, Any], args: CloneArguments, vocab_size: int) -> None:
    """Make a batch of the first row, so that a set for evaluation is not met after hours of training.

    A stream is not read, and what a collator of the user's own would make of the row is not known.
    """
    if given.get("data_collator") is not None or not isinstance(rows, (Sequence, Dataset)):
        return
    row = rows[0]
    if args.remove_unused_columns and isinstance(row, Mapping):  # as Trainer does
        row = {key: value for key, value in row.items() if key in (*NAMES, "label", "label_ids")}
    try:
        checked_batch(padded([row]), vocab_size)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_data(given: dict[str, Any], args: CloneArguments, vocab_size: int) -> None:
    sets = {"train_dataset": given.get("train_dataset")}
    held_out = given.get("eval_dataset")
    if isinstance(held_out, dict):
        sets |= {f"eval_dataset[{name!r}]": rows for name, rows in held_out.items()}
    else:
        sets["eval_dataset"] = held_out
    for name, rows in sets.items():
        if rows is None:
            continue
        if has_length(rows) and len(rows) == 0:
            raise InputError(f"{name}: got no row, expected at least one; leave it out where there is nothing")
        if isinstance(rows, Dataset) and "input_ids" not in rows.column_names:
            raise InputError(f"{name}: got {', '.join(rows.column_names)}, expected input_ids; tokenise the text")
        if name == "train_dataset" and has_length(rows):
            check_enough(len(rows), args)
        _check_first_row(name, rows, given, args, vocab_size)
        streamed = isinstance(rows, torch.utils.data.IterableDataset)
        loader: Any = args.accelerator_config
        if streamed and args.world_size > 1 and loader.dispatch_batches is False:
            raise InputError(
                f"training.accelerator_config: got dispatch_batches false for {name}, a stream whose end each process "
                "would see by itself; expected nothing"
            )


def _check_metric(held_out: Any, args: CloneArguments, clone: CloneModel) -> None:
    """The metric that decides must be among those that an evaluation of these sets measures."""
    if args.metric_for_best_model is None or held_out is None:
        return
    off = {"kl": clone.objective.kl_weight == 0, "clone": not clone.taps}
    measured = [name for name in LOSSES if not off.get(name, False)]
    prefixes = [f"eval_{name}_" for name in held_out] if isinstance(held_out, dict) else ["eval_"]
    names = [prefix + name for prefix in prefixes for name in measured]
    if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" not in names:
        raise InputError(
            f"training.metric_for_best_model: got {args.metric_for_best_model!r}, expected one of {', '.join(names)}"
        )
