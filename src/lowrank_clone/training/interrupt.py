"""Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and the clock: finish the step, save, and say how to go on.

    with interruptible(lambda: "nothing was saved") as interruption:
        ...                                     # a signal ends this at once: nothing was trained yet
        trainer.add_callback(interruption)
        interruption.save = save_now
        trainer.train()                         # a signal is kept until the step is done and saved; a second one is not

Before the first step a signal raises `Interrupted` where it arrives. From then on the first signal lets the step end,
a checkpoint be written and training stop; the second one raises at once, and leaves a checkpoint that is being written
incomplete, which resuming passes over. In several processes it does not matter whether one of them is told or all are.

    130  Ctrl-C (SIGINT)                        143  SIGTERM, as Slurm, Kubernetes and `kill` send it
    129  SIGHUP, of a terminal that was closed; `nohup` has it ignored
    138  SIGUSR1, as `sbatch --signal=USR1@120` sends it before the time is over
    75   training.max_hours; the code for "try again" (EX_TEMPFAIL of sysexits.h)
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ..errors import Interrupted
from .saving import most_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
OUT_OF_TIME = 75
# torchrun passes a signal on to processes that have it already, of their terminal or their batch system.
ONE_SIGNAL = 2.0  # seconds


class Interruption(TrainerCallback):
    """The state between a signal and the end of its step. Made by `interruptible`.

    Args:
        kept: Says what is on the disk and how to go on.
        clock: Seconds of a clock that never goes back; `training.max_hours` begin with this object.

    Attributes:
        reason: What asked training to stop; empty until then.
        save: Writes a checkpoint of the current step; needed to stop within an evaluation.
    """

    def __init__(self, kept: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self.kept, self.reason, self.code = kept, "", 0
        self.save: Callable[[], None] | None = None
        self._clock, self._begun = clock, clock()
        self._told: float | None = None  # when this process had its first signal
        self._training = False
        self._saved: int | None = None

    def handle(self, signum: int, _: Any) -> None:
        """Python's handler of the signals."""
        now = self._clock()
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if launched and self._told is not None and now - self._told < ONE_SIGNAL:
            return
        if not self._training or self._told is not None:
            raise Interrupted(f"stopped by {_name(signum)}; {self.kept()}", 128 + signum)
        self._told = now
        if not self.reason:
            self.reason, self.code = _name(signum), 128 + signum
        # Not print: the signal may have come in the middle of one.
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"\n{_name(signum)}: this step is finished and saved first; once more stops at once\n".encode())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a signal, or when the time is over: save this step and stop, in all processes."""
        late = args.max_hours > 0 and self._clock() - self._begun >= 3600 * args.max_hours
        if late and not self.reason:
            self.reason, self.code = f"training.max_hours ({args.max_hours:g})", OUT_OF_TIME
        code = most_of(self.code, args)
        if code:
            if not self.reason:  # another process was told
                self.code = code
                self.reason = "training.max_hours" if code == OUT_OF_TIME else _name(code - 128)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # it is made up for by the run that goes on

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember which step is saved."""
        self._saved = state.global_step

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation is not finished first; under several processes it is, as they would not stop at one batch."""
        if self.reason and args.world_size == 1 and self.save is not None:
            if self._saved != state.global_step:
                self.save()
            raise self._stopped(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End in one line if it was a signal that ended training."""
        self._training = False
        if self.reason:
            raise self._stopped(state)

    def _stopped(self, state: Any) -> Interrupted:
        done = f"stopped by {self.reason} after step {state.global_step} of {state.max_steps}"
        return Interrupted(f"{done}; {self.kept()}", self.code)


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[Interruption]:
    """Handle the signals within the context, in the main thread of a process (elsewhere Python has no say in them).

    A signal that the process ignores stays ignored.

    Args:
        kept: Says what is on the disk and how to go on; called when a signal has ended things.
    """
    interruption = Interruption(kept)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    heard = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, interruption.handle) for signum in heard}
    try:
        yield interruption
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
