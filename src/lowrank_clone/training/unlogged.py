"""What a run has added up since its last log: it is saved too, so that a run that goes on logs the same means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

FILE = "running.json"


class Unlogged:
    """The terms of the loss since the last log, kept on the device, those of the step that is running apart.

    Attributes:
        steps: How many steps the sums are over.
        left_out: Steps since the last log that were skipped.
    """

    def __init__(self) -> None:
        self.steps = self.left_out = 0
        self._sums: dict[str, Tensor] = {}
        self._step: dict[str, Tensor] = {}
        self._loss_before = torch.zeros(())

    def begin_step(self, loss: Tensor) -> None:
        """Forget what an unfinished step added. `loss` is Trainer's own sum, which the step adds to."""
        self._step, self._loss_before = {}, loss.clone()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add a micro-batch's terms to those of the step."""
        for name, value in terms.items():
            self._step[name] = self._step[name] + value if name in self._step else value

    def take_step(self) -> None:
        """The step counts."""
        for name, value in self._step.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._step, self.steps = {}, self.steps + 1

    def leave_step(self, loss: Tensor) -> None:
        """The step does not count: nothing of it is in the sums, nor in Trainer's."""
        loss.copy_(self._loss_before)
        self._step, self.left_out = {}, self.left_out + 1

    def of_step(self) -> dict[str, Tensor]:
        """The terms of the step that is running, of this process."""
        return self._step

    def take(self) -> dict[str, Tensor]:
        """The sums, which begin anew."""
        sums, self._sums, self.steps, self.left_out = self._sums, {}, 0, 0
        return sums

    # What a checkpoint holds -----------------------------------------------------------------------------------------

    def save(self, trainer: Any, folder: Path, more: dict[str, Any]) -> None:
        """Write the sums of every process, and what else belongs to them; called in all processes."""
        loss = getattr(trainer, "_tr_loss", None)
        own = {name: float(value) for name, value in self._sums.items()}
        parts: list[Any] = [[own, 0.0 if loss is None else float(loss)]] * trainer.args.world_size
        if trainer.args.world_size > 1:
            dist.all_gather_object(parts, parts[0])
        if trainer.args.should_save:
            logged = getattr(trainer, "_globalstep_last_logged", trainer.state.global_step)
            state = {"logged": logged, "steps": self.steps, "left_out": self.left_out, "processes": parts, **more}
            (folder / FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, trainer: Any, folder: Path) -> dict[str, Any]:
        """Go on from there. Of another number of processes the first one has all sums; an older checkpoint has none.

        Returns:
            What was saved beside them.
        """
        if not (folder / FILE).is_file():
            return {}
        state: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        parts, index, world = state.pop("processes"), trainer.args.process_index, trainer.args.world_size
        if len(parts) == world:
            sums, loss = parts[index]
        else:
            names = parts[0][0] if index == 0 else ()
            sums = {name: sum(part[0].get(name, 0.0) for part in parts) for name in names}
            loss = sum(part[1] for part in parts) / len(parts)
        device = trainer.args.device
        self._sums = {name: torch.tensor(value, device=device) for name, value in sums.items()}
        self.steps, self.left_out = state.pop("steps"), state.pop("left_out")
        trainer._tr_loss.fill_(loss)
        trainer._globalstep_last_logged = state.pop("logged")
        return state
