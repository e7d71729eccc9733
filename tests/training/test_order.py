"""The order of rows and the hash over those that were read: the same however they are dealt out and interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_trainer import Sample, arguments, clone, logs_of, samples, watch_batches
from torch.utils.data import IterableDataset

from lowrank_clone.mixing import keyed, scrambled, scrambled_tensor, shuffled
from lowrank_clone.training.metrics import MetricsFile, read_metrics
from lowrank_clone.training.order import ShuffledRows, in_global_order, row_hashes
from lowrank_clone.training.trainer import CloneTrainer


def splitmix(x: int) -> int:
    """The published generator's output for the state `x`, in whole numbers of Python."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def hash_of_row(ids: list[int]) -> int:
    total = sum(splitmix(splitmix(place) ^ token) for place, token in enumerate(ids)) % 2**64
    return splitmix(total ^ splitmix(len(ids))) or 1


def chain(rows: list[list[int]]) -> str:
    value = ""
    for row in rows:
        value = hashlib.blake2b(bytes.fromhex(value) + hash_of_row(row).to_bytes(8, "big"), digest_size=8).hexdigest()
    return value


def test_scrambling_is_splitmix_in_numpy_and_torch() -> None:
    numbers = [0, 1, 2, 3, 2**31, 2**63, 2**64 - 1]
    expected = [splitmix(n) for n in numbers]
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the first output that the generator's authors list for seed 0
    assert scrambled(np.array(numbers, np.uint64)).tolist() == expected
    signed = torch.tensor(np.array(numbers, np.uint64).view(np.int64))
    assert scrambled_tensor(signed).numpy().view(np.uint64).tolist() == expected


def test_keys_of_several_numbers_are_no_sum_of_them() -> None:
    numbers = np.arange(4, dtype=np.uint64)
    found = [keyed(numbers, *key).tolist() for key in ((0, 1), (1, 0), (1,), (0,), (0, 0), (2, 2**64 - 1), (-1,))]
    assert len({tuple(values) for values in found}) == len(found)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 1000])
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(rows: int) -> None:
    sampler, orders = ShuffledRows(rows, 5), []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler) == shuffled(rows, 5, epoch).tolist()
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(rows)) and len(sampler) == rows
    if rows == 1000:
        assert orders[0] != orders[1] != list(ShuffledRows(rows, 6)) != orders[0]


def test_a_row_has_its_own_hash_in_whatever_batch_it_is() -> None:
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 0, 3], [6, 5, 7, 0, 0], [5, 6, 0, 0, 0]])
    mask = (torch.arange(5) < torch.tensor([3, 5, 3, 2])[:, None]).long()
    found = row_hashes({"input_ids": ids, "attention_mask": mask}, 4).numpy().view(np.uint64).tolist()
    assert found == [hash_of_row(row) for row in ([5, 6, 7], [5, 6, 7, 0, 3], [6, 5, 7], [5, 6])]
    left = row_hashes({"input_ids": ids[:1].roll(2, 1), "attention_mask": mask[:1].roll(2, 1)}, 1)
    assert left.numpy().view(np.uint64).tolist() == found[:1]
    assert row_hashes({"input_ids": ids}, 1)[1:].tolist() == [0, 0, 0]


def test_processes_put_their_rows_into_their_places() -> None:
    first, second = torch.tensor([1, 2]), torch.tensor([5])
    ours, theirs = in_global_order([first, second], 2, 0), in_global_order([first + 2, second + 1], 2, 1)
    assert (ours + theirs).tolist() == [1, 2, 3, 4, 5, 6]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Sample]:
        return iter(ROWS)


ROWS = samples(13, length=4)
STEP = {"learning_rate": 1e-3, "max_steps": 7, "save_strategy": "no"}  # a step of 8 rows: an epoch has 2


def expected(steps: int = 7) -> str:
    """The hash over the rows of so many steps, from the order alone."""
    ids = [row["input_ids"].tolist() for row in ROWS]
    whole, half = divmod(steps, 2)
    order = [place for epoch in range(whole) for place in shuffled(13, 42, epoch)]
    return chain([ids[place] for place in [*order, *(shuffled(13, 42, whole)[:8] if half else [])]])


def trained(folder: Path, rows: Any = ROWS, checkpoint: str | None = None, **options: Any) -> CloneTrainer:
    fixed = {"per_device_train_batch_size": 8, **STEP, "seed": 42}
    callbacks = [MetricsFile(folder / "metrics.jsonl")]
    trainer = CloneTrainer(clone(), arguments(folder, **{**fixed, **options}), train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


CASES: dict[str, dict[str, Any]] = {
    "micro-batches of 8": {},
    "micro-batches of 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "micro-batches of 1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "two workers": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "dataloader_num_workers": 2},
    "a seed of its own": {"data_seed": 42, "seed": 1},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_hash_is_of_the_rows_in_their_order_however_they_are_read(options: Any, tmp_path: Path) -> None:
    trainer = trained(tmp_path, **options)
    assert [log["data_hash"] for log in logs_of(trainer)] == [expected(step) for step in range(1, 8)]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["data_hash"] for line in lines] == [expected(step) for step in range(1, 8)]


@pytest.mark.parametrize("rows", [Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in ROWS])])
def test_a_data_set_of_another_library_is_read_in_the_same_order(rows: Any, tmp_path: Path) -> None:
    assert logs_of(trained(tmp_path, rows))[-1]["data_hash"] == expected()


def test_a_stream_is_hashed_as_it_comes(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Stream(), max_steps=3)
    ids = [row["input_ids"].tolist() for row in ROWS]
    assert logs_of(trainer)[-1]["data_hash"] == chain([*ids, *ids[:8]])


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_resumed_run_reads_what_is_left_and_nothing_else(step: int, restored: bool, tmp_path: Path) -> None:
    """In the middle of the first epoch, at its end, in the middle of the third."""
    options = {"save_strategy": "steps", "save_steps": step, "restore_callback_states_from_checkpoint": restored}
    trained(tmp_path, **options, **CASES["micro-batches of 2"])
    checkpoint = tmp_path / f"checkpoint-{step}"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["DataHash"]["attributes"]["value"] == expected(step)
    read = Counted(ROWS)
    resumed = trained(tmp_path, read, str(checkpoint), **options, **CASES["micro-batches of 2"])
    assert [log["data_hash"] for log in logs_of(resumed)] == [expected(at) for at in range(1, 8)]
    order = [place for epoch in range(4) for place in shuffled(13, 42, epoch)]
    done = (step // 2) * 13 + (step % 2) * 8
    assert read.asked == order[done : 3 * 13 + 8 + 2]  # accelerate looks one micro-batch ahead


class Counted:
    """Rows that remember which were asked for."""

    def __init__(self, rows: list[Sample]) -> None:
        self.rows, self.asked = rows, list[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Sample:
        self.asked.append(place)
        return self.rows[place]


def test_a_step_that_is_not_done_is_not_hashed_and_a_new_run_begins_a_new_hash(tmp_path: Path) -> None:
    trainer = CloneTrainer(clone(), arguments(tmp_path, **STEP, seed=42), train_dataset=ROWS)
    seen = watch_batches(trainer)
    trainer.train()
    first = logs_of(trainer)[-1]["data_hash"]
    assert first == chain([row for batch in seen for row in batch.tolist()])
    trainer.train()
    assert logs_of(trainer)[-1]["data_hash"] == first
