"""What one process and several processes are asked to do alike; run as a script, this file is one of the several.

WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/processes.py FOLDER none CASE ..
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import VOCAB, tiny_model
from torch import Tensor, distributed
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from lowrank_clone.model import CloneModel
from lowrank_clone.shards import whole
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.optim import refresh
from lowrank_clone.training.trainer import CloneTrainer

Row = dict[str, Tensor]


def rows(count: int, seed: int = 0, least: int = 2) -> list[Row]:
    """Rows of up to 10 tokens; some with a masked prompt."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        length = int(torch.randint(least, 11, (), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator)
        labels = ids.masked_fill(torch.arange(length) < (index % 3) * length // 4, -100)
        found.append({"input_ids": ids, "labels": labels})
    return found


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Rows without a length; accelerate wants all of one size."""

    def __init__(self, held: list[Row]) -> None:
        self.held = held

    def __iter__(self) -> Any:
        return iter(self.held)


# A step has 4 rows, whatever the processes and micro-batches: most cases leave a part of that at the end of an epoch.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "epochs": ({}, {"num_train_epochs": 2, "max_steps": -1, "logging_steps": 2}, rows(10)),
    "normalised": ({"clone_normalization": "target"}, {"max_steps": 4, "eval_on_start": True}, rows(9)),
    "accumulated": (
        {"clone_normalization": "target"},
        {"gradient_accumulation_steps": 2, "ddp_find_unused_parameters": False, "eval_strategy": "no", "max_steps": 4},
        rows(13),
    ),
    "stream": ({"clone_weight": 0.0}, {"max_steps": 4, "logging_steps": 3}, Stream(rows(13, least=10))),
    "order": ({"clone_weight": 0.0}, {"max_steps": 7, "eval_strategy": "no", "seed": 3}, rows(10, least=3)),
    "muon": ({"kl_weight": 0.0}, {"max_steps": 3, "muon": True, "ddp_bucket_cap_mb": 1, "seed": 1}, rows(7)),
    # Through both kinds of switch, of matrices, biases (starcoder2) and experts (gpt_oss); at T = 1, so held closely.
    "switched": (
        {"temperature": 1.0, "clone_normalization": "target", "family": "starcoder2"},
        {"max_steps": 20, "eval_steps": 10, "save_steps": 10, "average_tokens_across_devices": False},
        rows(25, least=4),
    ),
    "switched muon": (
        {"temperature": 1.0, "attn_out_tap": "teacher", "execution": "interleaved", "family": "gpt_oss"},
        {"max_steps": 20, "eval_steps": 10, "save_steps": 10, "muon": True, "activation_checkpointing": True},
        rows(25, least=4),
    ),
}
SWITCHES: dict[int, dict[str, str]] = {6: {"attention": "core", "ffn": "dense", "experts": "core"}, 12: {"ffn": "core"}}
# More rows than a batch of all processes, an uneven last batch, fewer rows than processes.
HELD_OUT = {"many": rows(11, 1), "few": rows(3, 2), "one": rows(1, 3), "stream": Stream(rows(7, 4, least=10))}


class Switching(TrainerCallback):
    """Reparameterise in the middle, as a recipe's `from_step` does."""

    trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clone = self.trainer.clone
        if state.global_step in SWITCHES:
            kinds = SWITCHES[state.global_step]
            clone.reparameterize({group: kind for group, kind in kinds.items() if group in clone.kinds})
            refresh(self.trainer.optimizer, clone.factors)


def results(world: int, folder: Path, cases: Sequence[str], sharding: str = "none") -> dict[str, dict[str, Any]]:
    """Logs, factors and running means of the cases, run by this process as one of `world`."""
    return {name: run(folder / name, world, *CASES[name], sharding) for name in cases}


def run(
    folder: Path, world: int, objective: dict[str, Any], options: dict[str, Any], train: Any, sharding: str
) -> dict[str, Any]:
    """A run, and one that goes on from its first checkpoint."""
    fixed = {
        "teacher_sharding": sharding,
        "per_device_train_batch_size": 4 // world // options.get("gradient_accumulation_steps", 1),
        "per_device_eval_batch_size": 4 // world,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 0.5,
    }
    trainers = []
    for checkpoint in (None, str(folder / f"checkpoint-{options.get('save_steps', 2)}")):
        # The processes begin with different factors: they must take the first one's.
        seed = distributed.get_rank() if distributed.is_initialized() else 0
        settings = dict(objective)
        teacher, switching = tiny_model(settings.pop("family", "llama")), Switching()
        model = CloneModel(teacher, 16, factor_std=0.2, seed=seed, **settings)
        args = CloneArguments(output_dir=str(folder), **{**fixed, **options})
        callbacks: list[TrainerCallback] = [switching] if "family" in objective else []
        trainers.append(CloneTrainer(model, args, train_dataset=train, eval_dataset=HELD_OUT, callbacks=callbacks))
        switching.trainer = trainers[-1]
        trainers[-1].train(resume_from_checkpoint=checkpoint)
    once, resumed = trainers
    assert once.state.log_history[-2].get("data_hash") == resumed.state.log_history[-2].get("data_hash")
    factors = {name: whole(value).clone() for name, value in once.clone.factors.state_dict().items()}
    for name, factor in resumed.clone.factors.state_dict().items():
        assert torch.equal(factors[name], whole(factor)), name
    once.save_model(str(folder / "student"))
    squares = once.clone.target_squares
    return {
        "logs": [without_times(log) for log in once.state.log_history],
        "factors": factors,
        "squares": None if squares is None else squares.mean,
    }


def without_times(log: dict[str, Any]) -> dict[str, Any]:
    """A log without what a clock measured."""
    return {name: value for name, value in log.items() if not name.endswith(("runtime", "per_second"))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = results(int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]), sys.argv[3:], sys.argv[2])
    if os.environ["RANK"] == "0":
        torch.save(found, Path(sys.argv[1]) / "results.pt")
    distributed.destroy_process_group()
