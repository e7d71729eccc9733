"""What the last checkpoint of a run says, for the commands that read runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..errors import InputError
from ..recipe.load import load_recipe
from ..run.job import Job, check
from ..training.checkpoint import last_checkpoint
from ..training.metrics import read_metrics


@dataclass(frozen=True)
class Saved:
    """The last complete checkpoint of a run: the job that resumes there, and what was counted and logged until then."""

    job: Job
    checkpoint: Path
    step: int
    tokens: int
    metrics: list[dict[str, Any]]


def read_saved(run: Path, *overrides: str) -> Saved:
    """Where the run in this folder stands.

    Raises:
        InputError: It is no run's folder, or nothing is saved there yet.
    """
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"`{run}` holds no recipe.yaml; expected the folder of a run")
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise InputError(f"`{run}` holds no complete checkpoint; let the run go on until it has saved one")
    recipe = load_recipe(str(run / "recipe.yaml"), [f"training.output_dir={json.dumps(str(run))}", *overrides])
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    file = run / "metrics.jsonl"
    lines = read_metrics(file) if file.is_file() else []
    metrics = [line for line in lines if line["step"] <= state.global_step]
    return Saved(check(recipe, resume=True), checkpoint, state.global_step, state.num_input_tokens_seen, metrics)
