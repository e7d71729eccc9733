"""What a trainer of clones does for the engine that trains it in several processes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..model import CloneModel
from .arguments import CloneArguments
from .checkpoint import write_clone
from .fully_sharded import follow_shards, is_sharded, shard_clone, take_whole_states, whole_state, whole_tensors
from .readers import save_for_readers


class EngineTrainer(Trainer):
    """A `Trainer` whose clone may be sharded over processes. All that is written is whole, so any number reads it."""

    clone: CloneModel
    model: CloneModel
    args: CloneArguments

    def _shard_where_asked(self) -> None:
        """Under FSDP2, shard the clone, once, and keep accelerate from wrapping it in an engine of its own."""
        if self.args.engine.name != "fsdp2":
            return
        if not is_sharded(self.clone):
            shard_clone(self.clone, self.args.teacher_sharding == "fsdp", self.args.engine.reshard_after_forward)
        vars(self.clone)["_is_accelerate_prepared"] = True
        if self.optimizer is not None:
            follow_shards(self.optimizer, self.clone)

    def _take_whole_states(self, optimizer: Optimizer) -> None:
        if is_sharded(self.clone):
            take_whole_states(optimizer)

    def _of_all_processes(self, loss: Tensor) -> Tensor:
        """The loss whose gradients' mean over processes is right; terms are divided by the counts of all of them."""
        return loss if self.args.average_tokens_across_devices else loss * self.args.world_size

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student, a plain `transformers` checkpoint; inside checkpoints, the factors."""
        folder = Path(output_dir or self._run_dir())
        saves = self.args.should_save
        if _internal_call and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            factors = whole_tensors(self.clone.factors.state_dict(), keep=saves)
            if saves:
                write_clone(self.clone, folder, factors)
            return
        weights = self.whole_student()
        if saves:
            save_for_readers(self.clone.student, folder, self.processing_class, self.clone.teacher.config, weights)

    def whole_student(self) -> dict[str, Tensor]:
        """The student's weights by name, where this process saves; every process has to call."""
        return whole_tensors(self.clone.student.state_dict(keep_vars=True), keep=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        with whole_state(self.optimizer, keep=self.args.should_save):
            super()._save_optimizer_and_scheduler(output_dir)

    def _run_dir(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)
