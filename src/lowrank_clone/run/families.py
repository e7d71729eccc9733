"""What each model type can do besides being planned, found by doing it to a tiny random model of its layout."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import InputError, one_line
from ..model import CloneModel
from ..plan.families import Family
from ..plan.roles import Plan
from ..plan.tiny import tiny_config, tiny_model
from ..starts.registry import StartInputs, make_start
from ..training.optim import bind

COLUMNS = ("padding", "training", "calibrated", "switch", "export", "taps")
WIDTH = 16
YES = "yes"


@dataclass(frozen=True)
class Trial:
    """A planned type and what came of each of `COLUMNS`: `yes`, or why not."""

    family: Family
    cells: dict[str, str] = field(default_factory=dict)


def try_family(family: Family) -> Trial:
    """Try everything on a tiny model of a family's layout. Nothing is tried of a family that has no plan."""
    if family.plan is None:
        return Trial(family)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            teacher = tiny_model(tiny_config(family.plan.teacher_config))
            clone = CloneModel(teacher, WIDTH, factor_std=0.1)
    except Exception as error:  # each family fails in its own way
        return Trial(family, dict.fromkeys(COLUMNS, f"no tiny model: {one_line(error, 200)}"))
    trials: dict[str, Callable[[], str]] = {
        "padding": partial(_padding, clone),
        "calibrated": partial(_calibrated, teacher, clone.plan),
        "taps": partial(_taps, clone),
        "training": partial(_training, clone),
        "switch": partial(_switch, clone),
        "export": partial(_export, clone),
    }
    return Trial(family, {column: _outcome(trial) for column, trial in trials.items()})


def _outcome(trial: Callable[[], str]) -> str:
    try:
        return trial()
    except InputError as error:
        return str(error)
    except Exception as error:  # each family fails in its own way
        return f"{type(error).__name__}: {one_line(error, 200)}"


def _batch(clone: CloneModel, rows: int = 4, length: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, clone.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def _padding(clone: CloneModel) -> str:
    """Whether the terms of a padded batch are those of its sequences one by one, padded on either side."""
    ids, lengths = _batch(clone), (16, 9, 12, 6)
    wrong = []
    for side in ("left", "right"):
        rows = [slice(0, n) if side == "right" else slice(16 - n, 16) for n in lengths]
        mask = torch.zeros_like(ids)
        for row, kept in enumerate(rows):
            mask[row, kept] = 1
        try:
            padded = clone(ids * mask, attention_mask=mask)
        except InputError:
            wrong.append(side)
            continue
        single = [clone(ids[row : row + 1, kept]) for row, kept in enumerate(rows)]
        for name, weights in (("lm", [n - 1 for n in lengths]), ("kl", lengths), ("clone", lengths)):
            whole = getattr(padded, name)
            if whole is None:
                continue
            parts = sum(w * float(getattr(o, name)) for w, o in zip(weights, single, strict=True)) / sum(weights)
            if not math.isclose(float(whole), parts, rel_tol=1e-5, abs_tol=5e-6):
                return f"{name} is {float(whole):.6f} padded on the {side}, {parts:.6f} without"
    return f"refused on the {' and the '.join(wrong)}" if wrong else YES


def _calibrated(teacher: PreTrainedModel, plan: Plan) -> str:
    """Whether the calibrated start is made, and is nearer to the teacher than the random one."""
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randint(3, teacher.config.vocab_size, (4, 32), generator=generator) for _ in range(3)]
    start = make_start("calibrated", StartInputs(teacher, plan, batches))
    with torch.no_grad():
        ours, random = (CloneModel(teacher, WIDTH, start=each, clone_weight=0.0) for each in (start, "random"))
        before, after = (float(clone(batches[0]).kl) for clone in (random, ours))
    return YES if after < before else f"no better than random: KL {after:.3g}, random {before:.3g}"


def _taps(clone: CloneModel) -> str:
    reasons = clone.probe.reasons(clone.plan.taps)
    return f"{len(clone.taps)} of {len(clone.plan.taps)}; without {reasons}" if reasons else YES


def _training(clone: CloneModel) -> str:
    """Whether the loss of one batch is finite and falls."""
    optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), lr=3e-3), clone.factors, max_grad_norm=1.0)
    clone.train()
    losses = []
    for _ in range(5):
        loss = clone(_batch(clone)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    clone.eval()
    if not all(map(math.isfinite, losses)):
        return f"losses {losses}"
    return YES if losses[-1] < losses[0] else f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}"


@torch.no_grad()
def _switch(clone: CloneModel) -> str:
    """Whether every matrix can become dense without changing a logit."""
    ids = _batch(clone)
    before = clone.student(ids, use_cache=False).logits
    clone.reparameterize({role.group: "dense" for role in clone.plan.of_kind("read", "write")})
    clone.factors.push()
    after = clone.student(ids, use_cache=False).logits
    return YES if torch.allclose(before, after, rtol=1e-4, atol=1e-5) else "the logits change"


@torch.no_grad()
def _export(clone: CloneModel) -> str:
    """Whether the saved student, loaded again, gives the same logits."""
    ids = _batch(clone)
    with tempfile.TemporaryDirectory() as folder:
        clone.student.save_pretrained(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            Path(folder), attn_implementation="eager", dtype=clone.student.dtype, output_loading_info=True
        )
    student, info = loaded
    if left := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        return f"other tensors are read than were written: {sorted(map(str, left))[:3]}"
    ours, theirs = (model.eval()(ids, use_cache=False).logits for model in (clone.student, student))
    return YES if torch.equal(ours, theirs) else "other logits after loading"


@contextmanager
def quietly() -> Iterator[None]:
    """No advice of the libraries: it is meant for users of one model, not for a tour of all."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
        logging.disable(logging.NOTSET)


def to_markdown(trials: list[Trial]) -> str:
    """The contents of docs/families.md."""
    planned = [trial for trial in trials if trial.family.supported]
    refused = [trial.family for trial in trials if not trial.family.supported]
    lines = [
        "# Model families",
        "",
        f"Written by `lrc families --markdown` with transformers {transformers.__version__}. Nothing in the library "
        "knows any type by its name: each was planned at half the width of its layout, and everything else was done to "
        "a tiny random model of that layout. The layout is that of the named checkpoint, or of the type's default "
        "config.",
        "",
        "* padding: the losses of a padded batch are those of its sequences one by one, padded left or right",
        "* training: five steps, the loss finite and falling",
        "* calibrated: the calibrated start is made and nearer to the teacher than the random one",
        "* switch: every matrix becomes dense and no logit changes",
        "* export: the saved student, loaded by transformers, gives the same logits",
        "* taps: every planned activation is compared",
        "",
        f"## Supported ({len(planned)})",
        "",
        f"| type | layout | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
        *(_row(trial) for trial in planned),
        "",
        f"## Refused ({len(refused)})",
        "",
        "| type | layout | reason |",
        "|---|---|---|",
        *(f"| {family.model_type} | {family.layout} | {_cell(family.reason)} |" for family in refused),
    ]
    return "\n".join(lines)


def _row(trial: Trial) -> str:
    family = trial.family
    name = f"{family.model_type}, {family.reason}" if family.reason else family.model_type
    return f"| {name} | {family.layout} | {' | '.join(_cell(trial.cells[column]) for column in COLUMNS)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/")
