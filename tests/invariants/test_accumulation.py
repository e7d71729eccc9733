"""Gradient accumulation: eight micro-batches of unequal token counts are one batch of eight rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import pulled_gradients, relative_error
from tiny import VOCAB, tiny_model
from torch import Tensor

from lowrank_clone.model import CloneModel
from lowrank_clone.objective.tokens import count_tokens
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.optim import bind
from lowrank_clone.training.trainer import CloneTrainer

LENGTHS = (12, 3, 7, 2, 9, 12, 5, 10)
SAME = 1e-5


def rows(seed: int = 0) -> list[dict[str, Tensor]]:
    """Eight rows of unequal lengths, two of them with a prompt that is not learned from."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(3, VOCAB, (12,), generator=generator)
        mask = (torch.arange(12) < length).long()
        labels = ids.masked_fill((mask == 0) | (torch.arange(12) < 2 * (index % 4 == 0)), -100)
        samples.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return samples


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def split(samples: list[dict[str, Tensor]], parts: int) -> list[dict[str, Tensor]]:
    size = len(samples) // parts
    return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]


def clone(normalization: str, family: str = "llama") -> CloneModel:
    return CloneModel(tiny_model(family), 16, factor_std=0.2, kl_weight=0.7, clone_normalization=normalization).train()


def accumulate(model: CloneModel, micro_batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One accumulated batch: the sums of its terms; gradients stay on the student."""
    counts = torch.stack([count_tokens(batch) for batch in micro_batches]).sum(0)
    model.measure_targets(micro_batches)
    total: dict[str, Tensor] = {}
    for batch in micro_batches:
        output = model(**batch, num_items_in_batch=counts)
        output.loss.backward()
        terms = {"loss": output.loss.detach(), "lm": output.lm, "kl": output.kl, "clone": output.clone, **output.taps}
        for name, value in terms.items():
            total[name] = total.get(name, torch.zeros_like(value)) + value
    return total


@pytest.mark.parametrize("normalization", ["none", "target"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("parts", [8, 4])
def test_micro_batches_are_one_batch(family: str, normalization: str, parts: int) -> None:
    whole, split_up = clone(normalization, family), clone(normalization, family)
    terms, summed = accumulate(whole, split(rows(), 1)), accumulate(split_up, split(rows(), parts))
    for name, value in terms.items():
        assert relative_error(summed[name], value) < (1e-4 if name == "kl" else SAME), name
    truth = pulled_gradients(whole)
    for name, gradient in pulled_gradients(split_up).items():
        assert relative_error(gradient, truth[name]) < SAME, name


def test_a_mean_of_the_micro_batches_own_losses_is_another_number() -> None:
    model = clone("none")
    whole = model(**split(rows(), 1)[0]).loss.detach()
    mean = torch.stack([model(**batch).loss.detach() for batch in split(rows(), 8)]).mean()
    assert relative_error(mean, whole) > 1e-3


@pytest.mark.parametrize("normalization", ["none", "target"])
def test_several_steps_of_micro_batches_are_steps_of_one_batch(normalization: str) -> None:
    losses: dict[int, list[Tensor]] = {1: [], 8: []}
    models = {parts: clone(normalization) for parts in losses}
    for parts, model in models.items():
        optimizer = bind(torch.optim.SGD(model.factors.parameters(), lr=1e-3), model.factors, max_grad_norm=10.0)
        for step in range(4):
            losses[parts].append(accumulate(model, split(rows(step), parts))["loss"])
            optimizer.step()
    for one, eight in zip(losses[1], losses[8], strict=True):
        assert relative_error(eight, one) < SAME
    assert len({float(loss) for loss in losses[1]}) == 4
    for name, factor in models[1].factors.items():
        assert relative_error(models[8].factors[name].detach(), factor.detach()) < SAME, name
    if normalization == "target":
        assert relative_error(models[8].target_squares.mean, models[1].target_squares.mean) < SAME


@pytest.mark.parametrize("normalization", ["none", "target"])
@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipped", "unclipped"])
def test_trainer_accumulates_like_one_batch(normalization: str, clip: float, tmp_path: Path) -> None:
    samples = [sample for step in range(3) for sample in rows(step)]
    results: dict[tuple[int, int], tuple[CloneModel, list[dict[str, Any]]]] = {}
    for per_device, steps in ((8, 1), (1, 8), (2, 4)):
        model = clone(normalization)
        arguments = CloneArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=steps,
            max_steps=3,
            learning_rate=1e-3,
            optim="sgd",
            max_grad_norm=clip,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = CloneTrainer(model, arguments, train_dataset=samples)
        trainer.train()
        results[per_device, steps] = (model, [log for log in trainer.state.log_history if "loss" in log])
    model, logs = results[8, 1]
    assert len(logs) == 3
    for other, other_logs in (results[1, 8], results[2, 4]):
        for ours, theirs in zip(other_logs, logs, strict=True):
            assert ours["data_hash"] == theirs["data_hash"]
            for name in theirs.keys() - {"learning_rate", "epoch", "kl", "data_hash"}:
                assert ours[name] == pytest.approx(theirs[name], rel=SAME), name
            assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-4)
        for name, factor in model.factors.items():
            assert relative_error(other.factors[name].detach(), factor.detach()) < SAME, name
