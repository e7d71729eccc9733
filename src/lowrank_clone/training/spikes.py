"""Steps that would spoil a run: gradients that are no numbers, and losses far from those of the steps before.

    on_spike: skip      the step is left out: its batch is read, counted, and not learned from
    on_spike: rewind    the factors, the optimiser and the running means go back to the last checkpoint as well; the
                        text that was read since is not read again. Without a checkpoint, and where factors are
                        sharded, the step is left out alone
    on_spike: stop      the state before the step is saved, and the run ends; `--resume` does that step again

More than `spike_limit` such steps among the last `spike_window` end the run in any case. All processes do the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import NonFiniteLoss
from .checkpoint import load_clone, readable
from .evaluation import told
from .fully_sharded import is_sharded
from .last_checkpoint import complete_checkpoints, last_checkpoint
from .optim import plain
from .plan_file import read_stored
from .processes import add_up, all_terms
from .saving import in_any_process
from .unlogged import Unlogged

# Steps that must have been seen before one can be far from them, and the least deviation as a share of the median.
FEWEST, LEAST = 20, 0.01
# A normal distribution's standard deviation is so many median absolute deviations.
MAD = 1.4826


class SpikeGuard(TrainerCallback):
    """What a `CloneTrainer` asks before each optimiser step, and what it has seen.

    Args:
        trainer: The one that it belongs to.
        unlogged: The terms of the step that is running.
    """

    def __init__(self, trainer: Any, unlogged: Unlogged) -> None:
        self._trainer, self._unlogged = trainer, unlogged
        self._losses: deque[float] = deque()
        self._norms: deque[float] = deque()
        self._spikes: list[int] = []
        self._event: dict[str, Any] | None = None
        self.resumed: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on from a checkpoint."""
        self._event = None
        found = {} if self.resumed is None else self._unlogged.load(self._trainer, self.resumed)
        self.resumed = None
        self._losses = deque(found.get("losses", ()), maxlen=args.spike_window)
        self._norms = deque(found.get("norms", ()), maxlen=args.spike_window)
        self._spikes = list(found.get("spikes", ()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what was done about this step, under its number."""
        event, self._event = self._event, None
        if event is not None:
            due = control.should_log
            self._trainer.log(event)
            control.should_log = due  # the step's own log, which Trainer takes for done now

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"losses": list(self._losses), "norms": list(self._norms), "spikes": self._spikes}

    def wrong(self, norm: torch.Tensor) -> str | None:
        """What is wrong with the step that is running, or None, in which case it is remembered.

        Args:
            norm: Of the gradient of all factors, a scalar.
        """
        args, goal = self._trainer.args, self._trainer.clone.objective
        weights = {"lm": goal.lm_weight, "kl": goal.kl_weight, "clone": goal.clone_weight}
        terms = {name: value for name, value in self._unlogged.of_step().items() if name in weights}
        sums = add_up(self._trainer, torch.stack([value.detach().double() for value in terms.values()])).tolist()
        loss, size = sum(weights[name] * value for name, value in zip(terms, sums, strict=True)), float(norm)
        found = None
        if not math.isfinite(size) or not math.isfinite(loss):
            found = f"the gradient norm is {size}, the loss {loss:.6g}"
        elif args.spike_deviations > 0:
            found = _beyond("loss", loss, self._losses, args.spike_deviations)
            found = found or _beyond("gradient norm", size, self._norms, args.spike_deviations)
        if in_any_process(found is not None, args):
            figures = {"step_loss": loss, "step_grad_norm": size}
            self._event = {name: value for name, value in figures.items() if math.isfinite(value)}
            return found or "another process found its gradient to be wrong"
        self._losses.append(loss)
        self._norms.append(size)
        return None

    def handle(self, found: str) -> bool:
        """Leave the step out, and go back if that is asked for; False where the run has to stop."""
        args, step = self._trainer.args, self._trainer.state.global_step + 1
        self._spikes = [at for at in self._spikes if at > step - args.spike_window] + [step]
        if args.on_spike == "stop" or len(self._spikes) > args.spike_limit:
            self._spikes.pop()
            return False
        back = self._rewind() if args.on_spike == "rewind" else None
        self._unlogged.leave_step(self._trainer._tr_loss)
        # The wrapper around the optimiser then makes no step; the schedule goes on.
        self._trainer.accelerator.gradient_state._set_sync_gradients(False)
        # Else torch takes the schedule for one that is stepped before its optimiser.
        vars(plain(self._trainer.optimizer))["_opt_called"] = True
        done = "skipped" if back is None else f"rewound to step {back}"
        self._event = {"event": done, "reason": found, **(self._event or {})}
        return True

    def stop(self, model: nn.Module, found: str) -> NoReturn:
        """Save the state before the step and end the run.

        Raises:
            NonFiniteLoss: Always; it tells what is known of the step.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        size, terms = trainer.get_total_train_batch_size(trainer.args), all_terms(trainer, self._unlogged.of_step())
        known = told(step, found, terms, (step * size, (step + 1) * size - 1))
        trainer.state.num_input_tokens_seen -= trainer._step_tokens
        self._unlogged.leave_step(trainer._tr_loss)
        self._unlogged.left_out -= 1  # it is done again
        trainer._forget_step()
        if last_checkpoint(trainer._run_dir()) != trainer._checkpoint_dir():  # a good one is not to be written over
            trainer._save_checkpoint(model, trial=None)
        raise NonFiniteLoss(f"{known}. The state before this step is in {trainer._checkpoint_dir()}")

    def _rewind(self) -> int | None:
        """The step to which the clone and its optimiser went back; None where there is none, or of other factors.

        A checkpoint of `save_steps` is taken where there is one: those that a clock or a signal asked for are not where
        an undisturbed run would have them.
        """
        trainer, args = self._trainer, self._trainer.args
        every = complete_checkpoints(trainer._run_dir())
        found = {step: folder for step, folder in every.items() if step <= trainer.state.global_step}
        planned = [step for step in found if args.save_strategy == "steps" and step % (args.save_steps or 1) == 0]
        step = max(planned or found, default=None)
        if trainer.is_deepspeed_enabled or is_sharded(trainer.clone):
            return None
        if step is None or read_stored(found[step]).kinds != trainer.clone.kinds or args.save_only_model:
            return None
        load_clone(trainer.clone, found[step])
        optimizer = plain(trainer.optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        with readable(found[step]):
            optimizer.load_state_dict(torch.load(found[step] / "optimizer.pt", map_location="cpu", weights_only=True))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return step


def _beyond(name: str, value: float, seen: Sequence[float], limit: float) -> str | None:
    """Whether a value is more than so many robust deviations above the median of those that were seen."""
    if len(seen) < FEWEST:
        return None
    middle = median(seen)
    deviation = max(MAD * median(abs(other - middle) for other in seen), LEAST * abs(middle))
    if value <= middle + limit * deviation:
        return None
    return f"the {name} is {value:.6g}, {(value - middle) / deviation:.1f} deviations above {middle:.6g}"
