"""When a run saves beside its `save_steps`, which checkpoints go, and with which rates a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checksums import remove_files
from .last_checkpoint import complete_checkpoints, relocate_best


class TimedCheckpoints(TrainerCallback):
    """Save once `minutes` have passed since the last checkpoint, at the end of an optimiser step.

    Such a checkpoint is there to resume from: it goes when a later one is complete. With `save_strategy: no`, or with 0
    minutes, nothing is saved by the clock.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self._clock = minutes, clock
        self._last = clock()
        self._due = False
        self._timed: int | None = None  # the step of the last checkpoint that the clock asked for

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._last, self._due, self._timed = self._clock(), False, None
        relocate_best(state, args.output_dir)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint if it is time."""
        if args.save_strategy == "no" or self.minutes <= 0:
            return
        late = self._clock() - self._last >= 60 * self.minutes
        self._due = in_any_process(late, args) and not control.should_save
        control.should_save = control.should_save or self._due

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew, and drop the last checkpoint that the clock had asked for."""
        self._last = self._clock()
        if args.should_save and self._timed not in (None, state.global_step, state.best_global_step):
            remove_files(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self._timed}")
        self._timed, self._due = state.global_step if self._due else None, False


class StartCheckpoint(TrainerCallback):
    """Save before the first step, so that a start which was long to compute is never computed twice."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the start."""
        if state.global_step == 0 and args.save_strategy != "no":
            self._save()


def rates_of(optimizer: Any) -> list[float]:
    """The learning rate of each group as it was made, before a schedule changed it."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def follow_schedule(optimizer: Any, scheduler: Any, rates: Sequence[float]) -> None:
    """Let an optimiser and a scheduler that were just loaded have the rates that this run gives.

    A run that was finished has the rate of its end, often 0, in its checkpoint, and its own full rate. Going on with
    more steps or another rate, its next step has what the new schedule gives it; where both are the old ones, nothing
    changes.

    Args:
        rates: From `rates_of`, before they were loaded.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        old = float(group.get("initial_lr", group["lr"]))
        if "initial_lr" in group:
            if old != rate and old > 0:
                group["lr"] *= rate / old
            group["initial_lr"] = rate
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = list(rates)
        step = scheduler.last_epoch
        now = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, lr in zip(scheduler.optimizer.param_groups, now, strict=True):
            group["lr"] = lr
        scheduler._last_lr = now


def in_any_process(flag: bool, args: Any) -> bool:
    """Whether `flag` is set in any process, so that all of them do the same."""
    return bool(most_of(int(flag), args))


def most_of(number: int, args: Any) -> int:
    """The largest of the processes' numbers."""
    if args.world_size == 1:
        return number
    found = torch.tensor(number, device=args.device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found.item())


def rotate(run: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Delete a run's oldest checkpoints until `limit` are left, but neither the newest one nor the best.

    Trainer's own rotation takes every folder `checkpoint-*` for one of its checkpoints, this one only a clone's.
    """
    if limit is None or limit <= 0:
        return
    found = complete_checkpoints(run)
    kept = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    old = [found[step] for step in sorted(found) if found[step].resolve() not in kept]
    for folder in old[: max(len(found) - max(limit, len(kept)), 0)]:
        remove_files(folder)
