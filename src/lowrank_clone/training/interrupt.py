"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on.

    with interruptible(lambda: "nothing was saved") as interruption:
        ...                                     # a signal ends this at once: nothing was trained yet
        trainer.add_callback(interruption)
        interruption.save = save_now
        trainer.train()                         # a signal is kept until the step is done and saved; a second one is not

Before the first step a signal raises `Interrupted` where it arrives. From then on the first signal lets the step end,
a checkpoint be written and training stop; the second one raises at once, and leaves a checkpoint that is being written
incomplete, which resuming passes over.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ..errors import Interrupted
from .saving import in_any_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(TrainerCallback):
    """The state between a signal and the end of its step. Made by `interruptible`.

    Attributes:
        kept: Says what is on the disk and how to go on.
        signum: The signal that asked training to stop, or 0.
        save: Writes a checkpoint of the current step; needed to stop within an evaluation.
    """

    def __init__(self, kept: Callable[[], str]) -> None:
        self.kept, self.signum = kept, 0
        self.save: Callable[[], None] | None = None
        self._training = False
        self._saved: int | None = None

    def handle(self, signum: int, _: Any) -> None:
        """Python's handler of both signals."""
        if not self._training or self.signum:
            raise Interrupted(f"stopped by {_name(signum)}; {self.kept()}", signum)
        self.signum = signum
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{_name(signum)}: this step is finished and saved first; once more stops at once\n".encode())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a signal: save this step and stop, in all processes."""
        if in_any_process(bool(self.signum), args):
            self.signum = self.signum or signal.SIGTERM  # another process was told
            control.should_save = control.should_training_stop = True
            control.should_log = True  # a run that goes on begins a new mean
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember which step is saved."""
        self._saved = state.global_step

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation is not finished first; under several processes it is, as they would not stop at one batch."""
        if self.signum and args.world_size == 1 and self.save is not None:
            if self._saved != state.global_step:
                self.save()
            raise self._stopped(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End in one line if it was a signal that ended training."""
        self._training = False
        if self.signum:
            raise self._stopped(state)

    def _stopped(self, state: Any) -> Interrupted:
        done = f"stopped by {_name(self.signum)} after step {state.global_step} of {state.max_steps}"
        return Interrupted(f"{done}; {self.kept()}", self.signum)


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[Interruption]:
    """Handle both signals within the context, in the main thread of a process (elsewhere Python has no say in them).

    Args:
        kept: Says what is on the disk and how to go on; called when a signal has ended things.
    """
    interruption = Interruption(kept)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {signum: signal.signal(signum, interruption.handle) for signum in SIGNALS}
    try:
        yield interruption
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
