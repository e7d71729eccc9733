"""How `CloneTrainer` is called: as transformers' users call `Trainer`, with optimisers and data of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracles import relative_error
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer
from tiny_trainer import arguments, clone, logs_of, samples, unequal_samples
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening, TrainerCallback

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.training.optim import bind
from lowrank_clone.training.options import ARGUMENTS
from lowrank_clone.training.progress import log_line
from lowrank_clone.training.trainer import CloneTrainer

ONCE = {"max_steps": 3, "save_strategy": "no", "lr_scheduler_type": "constant"}


def trained(folder: Path, model: CloneModel | None = None, **given: Any) -> CloneTrainer:
    options = {**ONCE, **given.pop("options", {})}
    trainer = CloneTrainer(model or clone(), arguments(folder, **options), **{"train_dataset": samples(8), **given})
    trainer.train()
    return trainer


def padding_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def wide_clone() -> CloneModel:
    """For ids of the tokenizer."""
    return CloneModel(tiny_model("llama", vocab_size=300), 16, factor_std=0.2)


def same_factors(one: CloneModel, other: CloneModel) -> bool:
    return all(torch.equal(value, other.factors[name]) for name, value in one.factors.items())


# --- optimisers -------------------------------------------------------------------------------------------------------


def own(model: CloneModel, **options: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": [f for f in model.factors.parameters() if f.ndim > 1], "weight_decay": 0.0},
        {"params": [f for f in model.factors.parameters() if f.ndim == 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=1e-3, betas=(0.9, 0.999), fused=True, **options)


OWN: dict[str, Callable[[CloneModel], dict[str, Any]]] = {
    "unbound": lambda model: {"optimizers": (own(model), None)},
    "bound": lambda model: {"optimizers": (bind(own(model), model.factors), None)},
    "with a scheduler": lambda model: {
        "optimizers": (optimizer := own(model), LambdaLR(optimizer, lambda step: 1.0)),
    },
    "class and options": lambda model: {
        "optimizer_cls_and_kwargs": (AdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "fused": True})
    },
}


@pytest.mark.parametrize("case", OWN)
def test_an_optimiser_of_the_user_s_own_trains_as_trainer_s(case: str, tmp_path: Path) -> None:
    model = clone()
    ours = trained(tmp_path, model, **OWN[case](model))
    assert same_factors(ours.clone, trained(tmp_path).clone)
    assert not same_factors(ours.clone, clone())


class WithItsOwn(CloneTrainer):
    """Makes its optimiser itself."""

    make: Callable[[CloneModel], Any]

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = self.make(self.clone)
        return self.optimizer


def test_an_optimiser_made_by_a_subclass_is_bound(tmp_path: Path) -> None:
    trainer = WithItsOwn(clone(), arguments(tmp_path, **ONCE), train_dataset=samples(8))
    trainer.make = own  # type: ignore[method-assign]
    trainer.train()
    assert same_factors(trainer.clone, trained(tmp_path).clone)
    trainer = WithItsOwn(clone(), arguments(tmp_path, **ONCE), train_dataset=samples(8))
    trainer.make = lambda model: SGD(model.student.parameters(), lr=1.0)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="parameters that are no factors"):
        trainer.train()


def test_frozen_factors_need_no_optimiser(tmp_path: Path) -> None:
    model = clone()
    name = "model.norm.weight"
    model.factors[name].requires_grad_(False)
    before = model.factors[name].clone()
    rest = [factor for factor in model.factors.parameters() if factor.requires_grad]
    trained(tmp_path, model, optimizers=(AdamW(rest, lr=1e-2), None))
    assert torch.equal(model.factors[name], before) and not same_factors(model, clone())


REFUSED: dict[str, tuple[Callable[[CloneModel], dict[str, Any]], str]] = {
    "the student's weights": (
        lambda m: {"optimizers": (AdamW(m.student.parameters()), None)},
        "parameters that are no factors",
    ),
    "the module's": (
        lambda m: {"optimizers": (AdamW([p for p in m.parameters() if p.requires_grad]), None)},
        "expected `clone.factors.parameters()`",
    ),
    "another clone's": (lambda m: {"optimizers": (AdamW(clone().factors.parameters()), None)}, "no factors"),
    "some of them": (
        lambda m: {"optimizers": (AdamW([f for f in m.factors.parameters() if f.ndim > 1]), None)},
        "factors and misses 5, the first `model.layers.0.input_layernorm.weight`",
    ),
    "no optimiser": (lambda m: {"optimizers": ("adamw", None)}, "got a str, expected a torch.optim.Optimizer"),
    "not a pair": (lambda m: {"optimizers": AdamW(m.factors.parameters())}, "expected (optimizer or None, scheduler"),
    "a scheduler alone": (
        lambda m: {"optimizers": (None, LambdaLR(own(m), lambda step: 1.0))},
        "got a scheduler (LambdaLR) that does not drive the optimiser beside it",
    ),
    "a scheduler of another": (
        lambda m: {"optimizers": (own(m), ReduceLROnPlateau(own(m)))},
        "got a scheduler (ReduceLROnPlateau) that does not drive",
    ),
    "two ways": (
        lambda m: {"optimizers": (own(m), None), "optimizer_cls_and_kwargs": (AdamW, {})},
        "got optimizers and optimizer_cls_and_kwargs, expected one of them",
    ),
    "a closure": (
        lambda m: {"optimizers": (torch.optim.LBFGS(m.factors.parameters()), None)},
        "LBFGS evaluates the loss by itself",
    ),
    "unknown option": (
        lambda m: {"optimizer_cls_and_kwargs": (AdamW, {"rate": 1.0})},
        "optimizer_cls_and_kwargs: AdamW.__init__() got an unexpected keyword argument 'rate'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimiser_that_would_train_something_else_is_refused(case: str, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    model = clone()
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        CloneTrainer(model, arguments(tmp_path), train_dataset=samples(8), **given(model))
    assert "\n" not in str(caught.value)


def test_muon_beside_an_optimiser_is_refused(tmp_path: Path) -> None:
    model = clone()
    with pytest.raises(InputError, match=r"got optimizers and training.muon, expected one of them"):
        CloneTrainer(model, arguments(tmp_path, muon=True), train_dataset=samples(8), optimizers=(own(model), None))


# --- the call ---------------------------------------------------------------------------------------------------------


def test_arguments_by_place_are_trainer_s(tmp_path: Path) -> None:
    collator = DataCollatorForLanguageModeling(padding_tokenizer(), mlm=False)
    trainer = CloneTrainer(wide_clone(), arguments(tmp_path, **ONCE), collator, samples(8), samples(4, seed=3), None)
    trainer.train()
    assert len(trainer.eval_dataset) == 4 and trainer.evaluate()["eval_lm"] > 0


def test_without_arguments_there_are_trainer_s_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = CloneTrainer(clone(), train_dataset=samples(8))
    assert trainer.args.output_dir == "tmp_trainer" and trainer.args.muon is False


@pytest.mark.parametrize("name", [name for name, reason in ARGUMENTS.items() if reason is not None])
def test_what_a_clone_has_no_use_for_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"CloneTrainer: got `{name}`, which has no use here; ") as caught:
        CloneTrainer(clone(), arguments(tmp_path), train_dataset=samples(8), **{name: lambda *_: None})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": None}, "unknown argument `tokenizer`; did you mean `processing_class`?"),
        ({"train_datasets": []}, "unknown argument `train_datasets`; did you mean `train_dataset`?"),
        ({"model": None}, "got `model` twice, by place and by name"),
        ({"train_dataset": []}, "train_dataset: got no row, expected at least one"),
        ({"eval_dataset": []}, "eval_dataset: got no row, expected at least one"),
        ({"eval_dataset": {"a": samples(2), "b": []}}, "eval_dataset['b']: got no row"),
        ({"train_dataset": Dataset.from_dict({"text": ["a b"]})}, "train_dataset: got text, expected input_ids"),
    ],
)
def test_a_call_that_means_nothing_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        CloneTrainer(clone(), arguments(tmp_path), **given)


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    few = arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=9)
    with pytest.raises(InputError, match="8 rows are fewer than one batch of 9, so nothing would be trained"):
        CloneTrainer(clone(), few, train_dataset=samples(8))


@pytest.mark.parametrize(
    ("metric", "sets", "options", "expected"),
    [
        ("loss", {"a": samples(2)}, {}, "expected one of eval_a_loss, eval_a_lm"),
        ("a_kl", {"a": samples(2)}, {"kl_weight": 0.0}, "expected one of eval_a_loss, eval_a_lm, eval_a_clone"),
        ("kl", samples(2), {"kl_weight": 0.0}, "got 'kl', expected one of eval_loss, eval_lm, eval_clone"),
    ],
)
def test_a_metric_that_no_evaluation_measures_is_refused(
    metric: str, sets: Any, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    args = arguments(tmp_path, metric_for_best_model=metric, eval_strategy="steps", eval_steps=2)
    with pytest.raises(InputError, match=expected):
        CloneTrainer(clone(**options), args, train_dataset=samples(8), eval_dataset=sets)


def test_the_best_by_perplexity_is_the_least(tmp_path: Path) -> None:
    options = {
        "metric_for_best_model": "perplexity",
        "load_best_model_at_end": True,
        "save_strategy": "steps",
        "learning_rate": 1.0,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    trainer = trained(tmp_path, eval_dataset=samples(4), options=options)
    seen = [log["eval_perplexity"] for log in trainer.state.log_history if "eval_perplexity" in log]
    assert trainer.state.best_metric == min(seen)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(min(seen), rel=1e-6)


# --- data -------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_a_stream_trains_like_its_rows(tmp_path: Path) -> None:
    options = {"train_sampling_strategy": "sequential", "eval_strategy": "steps", "eval_steps": 2}
    held = trained(tmp_path, eval_dataset=samples(5), options=options)
    streamed = trained(tmp_path, train_dataset=Stream(samples(8)), eval_dataset=Stream(samples(5)), options=options)
    hub = Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in samples(8)]).to_iterable_dataset()
    streaming = trained(tmp_path, train_dataset=hub, eval_dataset=samples(5), options=options)
    assert same_factors(held.clone, streamed.clone) and same_factors(held.clone, streaming.clone)
    assert streamed.evaluate()["eval_loss"] == pytest.approx(held.evaluate()["eval_loss"])


def test_a_stream_without_an_end_needs_a_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CloneTrainer: The train_dataset does not implement __len__") as caught:
        CloneTrainer(clone(), arguments(tmp_path, max_steps=-1), train_dataset=Stream(samples(8)))
    assert "\n" not in str(caught.value)


def test_several_sets_are_evaluated_apart(tmp_path: Path) -> None:
    trainer = trained(tmp_path, eval_dataset={"a": samples(3, seed=1), "b": samples(4, seed=2)})
    metrics = trainer.evaluate()
    assert "validation a: lm " in log_line({key: value for key, value in metrics.items() if "_a_" in key})
    for name, rows in trainer.eval_dataset.items():
        assert metrics[f"eval_{name}_lm"] == pytest.approx(trainer.evaluate(rows)["eval_lm"])


@pytest.mark.parametrize("tokenizer", [None, "can pad"])
def test_ragged_rows_are_padded_and_change_nothing(tokenizer: str | None, tmp_path: Path) -> None:
    """As rows that were padded before, and as one row at a time."""
    whole = [
        {key: value[: int(row["attention_mask"].sum())] for key, value in row.items()} for row in unequal_samples()
    ]
    ragged = [{"input_ids": row["input_ids"].tolist()} for row in whole]
    options = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4}
    given = {} if tokenizer is None else {"processing_class": padding_tokenizer()}
    ours = trained(tmp_path, wide_clone(), train_dataset=ragged, options=options, **given)
    theirs = trained(tmp_path, wide_clone(), train_dataset=unequal_samples(), options=options)
    for name, factor in theirs.clone.factors.items():
        assert relative_error(ours.clone.factors[name].detach(), factor.detach()) < 1e-5, name
    assert [log["tokens"] for log in logs_of(ours)] == [10, 36, 46]


def test_packed_rows_of_a_flattening_collator_train(tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"].tolist()} for row in samples(8)]
    collator = DataCollatorWithFlattening(return_position_ids=True)
    flat = trained(tmp_path, train_dataset=rows, data_collator=collator)
    plain = trained(tmp_path, train_dataset=rows)
    for name, factor in plain.clone.factors.items():
        assert relative_error(flat.clone.factors[name].detach(), factor.detach()) < 1e-4, name


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}] * 4, {}, "expected input_ids; tokenise the text"),
        (["a"] * 4, {}, "a row of the data set: got str, expected input_ids"),
        (
            [{"input_ids": [5, 96]}] * 4,
            {},
            "got 96, expected numbers from 0 and below the vocabulary's size 96",
        ),
        ([{"input_ids": [0.5, 0.1]}] * 4, {}, "input_ids: got torch.float32, expected whole numbers"),
        ([{"input_ids": ["a", "b"]}] * 4, {}, "can't be made a batch"),
        ([{"input_ids": [5, 6], "labels": [5]}] * 4, {}, "labels: got [1, 1], expected the shape of input_ids"),
        ([{"input_ids": [5, 6], "label": 1}] * 4, {}, "labels: got [1], expected the shape of input_ids"),
        (
            [{"input_ids": [5, 6], "weight": 1.0}] * 4,
            {"remove_unused_columns": False},
            "got `weight`, expected input_ids",
        ),
        (
            [{"input_ids": [5, 6], "attention_mask": [1, 2]}] * 4,
            {},
            "attention_mask: got the value 2, expected 1 for a token and 0 for padding",
        ),
        ([{"input_ids": [5, 6]}, {"input_ids": [5]}, {"input_ids": []}, {}] * 2, {}, "a row of the data set"),
    ],
)
def test_rows_that_would_be_misread_are_refused(
    rows: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        trained(tmp_path, train_dataset=rows, options={"train_sampling_strategy": "sequential", **options})
    assert "\n" not in str(caught.value)


def test_columns_that_a_clone_does_not_take_are_left_out_as_trainer_does(tmp_path: Path) -> None:
    rows = [{**row, "weight": 1.0, "text": "a"} for row in samples(8)]
    assert same_factors(trained(tmp_path, train_dataset=rows).clone, trained(tmp_path).clone)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_before_training_divides_by_the_size_of_its_own_targets(tmp_path: Path) -> None:
    """Whatever the batches, and without a trace in training."""
    losses = []
    for size in (1, 3):
        model = clone(clone_normalization="target")
        args = arguments(tmp_path, per_device_eval_batch_size=size, **ONCE)
        trainer = CloneTrainer(model, args, train_dataset=samples(8), eval_dataset=unequal_samples())
        losses.append(trainer.evaluate()["eval_clone"])
        trainer.train()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    plain = trained(tmp_path, clone(clone_normalization="target"))
    assert same_factors(trainer.clone, plain.clone)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"input_ids": torch.tensor([5])}],
        [{"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([-100, -100])}],
    ],
)
def test_an_evaluation_of_nothing_is_refused(rows: Any, tmp_path: Path) -> None:
    trainer = CloneTrainer(clone(), arguments(tmp_path))
    with pytest.raises(InputError, match=r"^evaluation: got (a data set without a row|no token to predict)"):
        trainer.evaluate(rows)


def test_evaluation_takes_labels_and_every_row(tmp_path: Path) -> None:
    rows = [{**row, "labels": row["input_ids"].clone().index_fill(0, torch.arange(4), -100)} for row in samples(5)]
    trainer = CloneTrainer(clone(), arguments(tmp_path, dataloader_drop_last=True, label_names=["labels"]))
    with torch.no_grad():
        truth = trainer.clone.eval()(**{key: torch.stack([row[key] for row in rows]) for key in rows[0]})
    metrics = trainer.evaluate(rows)
    for name in ("loss", "lm", "clone"):
        assert metrics[f"eval_{name}"] == pytest.approx(float(truth[name]), rel=1e-5)


def test_a_step_in_which_nothing_counts_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input_ids": [5, 6], "labels": [-100, -100]}] * 8
    model = trained(tmp_path, train_dataset=rows, options={"optim": "sgd"}).clone
    assert same_factors(model, clone())
    assert "step 1: no position of its 1 batches counts, as all labels are -100" in caplog.text


def test_a_set_of_another_name_is_refused(tmp_path: Path) -> None:
    trainer = CloneTrainer(clone(), arguments(tmp_path), eval_dataset={"a": samples(2)})
    with pytest.raises(InputError, match="evaluate: got 'b', expected a data set or the name of one"):
        trainer.evaluate("b")


def test_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predict: a clone measures losses and predicts nothing"):
        CloneTrainer(clone(), arguments(tmp_path)).predict(samples(2))


# --- again ------------------------------------------------------------------------------------------------------------


class Break(TrainerCallback):
    """Raises in the middle of a step, once its gradients are there."""

    def __init__(self, when: str) -> None:
        self.when, self.done = when, False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name == object.__getattribute__(self, "when"):
            return self._break
        return found

    def _break(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and not self.done:
            self.done = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["on_substep_end", "on_pre_optimizer_step", "on_step_end"])
@pytest.mark.parametrize("normalization", ["none", "target"])
def test_training_after_an_exception_takes_nothing_of_the_broken_step(
    when: str, normalization: str, tmp_path: Path
) -> None:
    """As a trainer that was stopped between two steps: same factors, same logs."""
    runs = []
    options = {**ONCE, "gradient_accumulation_steps": 2, "optim": "sgd", "train_sampling_strategy": "sequential"}
    for broken in (when, None):
        trainer = CloneTrainer(
            clone(clone_normalization=normalization), arguments(tmp_path, **options), train_dataset=samples(12)
        )
        trainer.add_callback(Break(when))
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        start = trainer.clone if broken else clone(clone_normalization=normalization)
        if not broken:  # the same factors in a new trainer, which knows nothing of a step
            start.factors.load(dict(runs[0][2]))
            if start.target_squares is not None and runs[0][3] is not None:
                start.target_squares.load_state_dict({"mean": runs[0][3]}, torch.device("cpu"))
            trainer = CloneTrainer(start, arguments(tmp_path, **options), train_dataset=samples(12))
        begin = {name: value.clone() for name, value in start.factors.state_dict().items()}
        squares = start.target_squares
        if squares is not None:
            squares.scales(start.factors.pushes)
        mean = None if squares is None or squares.mean is None else squares.mean.clone()
        trainer.train()
        runs.append((start, logs_of(trainer), begin, mean))
    assert same_factors(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_training_twice_goes_on_with_the_same_optimiser(tmp_path: Path) -> None:
    twice = trained(tmp_path, options={"train_sampling_strategy": "sequential"})
    twice.train()
    model = clone().train()
    optimizer = bind(own(model), model.factors, max_grad_norm=1.0)
    for _ in range(2):
        for start in (0, 2, 4):
            model(torch.stack([row["input_ids"] for row in samples(8)[start : start + 2]])).loss.backward()
            optimizer.step()
    for name, factor in model.factors.items():
        assert relative_error(twice.clone.factors[name].detach(), factor.detach()) < 1e-5, name
    assert [log["tokens"] for log in logs_of(twice)] == [16, 32, 48]


def test_resuming_where_nothing_was_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint is in"):
        CloneTrainer(clone(), arguments(tmp_path), train_dataset=samples(8)).train(resume_from_checkpoint=True)


def test_the_student_keeps_its_own_use_cache(tmp_path: Path) -> None:
    assert trained(tmp_path).clone.student.config.use_cache is True


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "abc"}], "eval_dataset: a row of the data set: got nothing, expected input_ids"),
        ("abc", "eval_dataset: a row of the data set: got str"),
        ({"a": samples(2), "b": [{"input_ids": [5, 96]}]}, "eval_dataset['b']: input_ids: got 96"),
    ],
)
def test_rows_of_an_evaluation_are_looked_at_before_training(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        CloneTrainer(clone(), arguments(tmp_path), train_dataset=samples(), eval_dataset=rows)


@pytest.mark.parametrize("callbacks", [TrainerCallback(), (TrainerCallback(),), "early", ["early"], [dict]])
def test_callbacks_that_are_none_are_refused(callbacks: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^callbacks: got a \w+, expected a list of TrainerCallback"):
        CloneTrainer(clone(), arguments(tmp_path), train_dataset=samples(), callbacks=callbacks)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_a_class_of_optimisers_is_tried_as_it_will_be_used(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^optimizer_cls_and_kwargs: "):
        CloneTrainer(clone(), arguments(tmp_path), train_dataset=samples(), optimizer_cls_and_kwargs=(kind, {"lr": 1}))
