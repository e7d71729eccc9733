"""`transformers.Trainer` for a `CloneModel`: what differs is what is optimised, counted, logged and saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from ..errors import InputError
from ..model import CloneModel
from ..shards import whole
from .checkpoint import load_clone, readable, resume_clone
from .checksums import written_whole
from .engine_trainer import EngineTrainer
from .evaluation import evaluate_set, terms_of
from .last_checkpoint import last_checkpoint
from .optim import is_bound, refresh
from .order import DataHash, ShuffledRows, hash_of, shuffled_rows
from .processes import InStep, all_terms
from .progress import Progress
from .rehearsal import Rehearsal
from .saving import TimedCheckpoints, follow_schedule, rates_of, rotate
from .spikes import SpikeGuard
from .step import StepReader
from .trainer_inputs import check_optimizer, taken
from .unlogged import Unlogged
from .warmup import without_idle_step

logger = logging.getLogger(__name__)


class CloneTrainer(EngineTrainer):
    """Train a `CloneModel`. Everything that `Trainer` does stays Trainer's, but for these points:

    * the optimiser holds the factors (`optim.bind`), and the gradient norm is theirs;
    * tokens are counted over the whole accumulated batch of all processes, for the LM and for the positions apart, and
      rows that accelerate repeats to fill the last batch are not counted: any number of processes gives one result;
    * `lm`, `kl`, `clone` and every tap are logged next to the loss; an evaluation is a mean over all tokens of a data
      set and adds the perplexity;
    * the first step of a warm-up has a rate above 0 (`warmup.py`);
    * rows are read in an order that the seed and the epoch alone decide, and `data_hash` in logs and checkpoints is a
      hash over those that were read (`order.py`);
    * checkpoints hold the factors and never the teacher; `save_model` writes the student as a plain checkpoint.

    Args:
        positional, named: Those of `Trainer`, in its order. `options.py` says of each whether a clone has a use for it.
            An optimiser of the user's own, in `optimizers`, holds `clone.factors.parameters()`; it is bound unless it
            is. Rows of unequal length are padded; rows may hold `input_ids`, `attention_mask`, `labels` and
            `position_ids`, others are left out as `Trainer` does.

    Raises:
        InputError: An argument is unknown, has no use for a clone, or does not fit the others.
        NonFiniteLoss: While training, after saving the last good state.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        given = taken(positional, named)
        self.clone: CloneModel = given["model"]
        use_cache = self.clone.config.use_cache
        try:
            super().__init__(**given)
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"CloneTrainer: {' '.join(str(error).split())}") from error
        self.clone.config.use_cache = use_cache  # Trainer sets it for a run; it would be saved with the student
        self._shard_where_asked()
        self._rows: ShuffledRows | None = None
        self._unlogged, self._step_tokens = Unlogged(), 0
        self._guard = SpikeGuard(self, self._unlogged)
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        self.add_callback(Progress(steps=not self.args.disable_tqdm))
        self.add_callback(TimedCheckpoints(self.args.save_minutes))
        self.add_callback(InStep(self))
        self.add_callback(DataHash())
        self.add_callback(self._guard)
        self.add_callback(Rehearsal(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's. It can be called again, after an exception too: nothing is left of a step that was not done.

        Raises:
            InputError: There is no checkpoint to resume from, and as the class says.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_checkpoint(self._run_dir()) or "")
            if not resume_from_checkpoint:
                raise InputError(f"train: got resume_from_checkpoint=True, and no checkpoint is in {self._run_dir()}")
        self._unlogged.take()
        self._guard.resumed = None
        self.clone.factors.zero_grad()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            self._forget_step()
            raise

    # What is optimised ---------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, over the factors."""
        optimizer = super().create_optimizer(self.clone.factors)
        check_optimizer(optimizer, self.clone.factors)
        self._take_whole_states(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's schedule, whose warm-up begins above 0; one of the user's own stays as it is."""
        if self.lr_scheduler is None:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = without_idle_step(scheduler, warmup)  # type: ignore[assignment]
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay is for matrices."""
        return [name for name, factor in model.named_parameters() if factor.ndim > 1]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.state.num_input_tokens_seen += self._step_tokens
        self.clone.factors.pull()
        limit = self.args.max_grad_norm or math.inf
        trained = [factor for factor in self.clone.factors.parameters() if factor.requires_grad]
        norm = whole(torch.nn.utils.clip_grad_norm_(trained, limit))
        if (found := self._guard.wrong(norm)) is None:
            self._unlogged.take_step()
        elif self._guard.handle(found):
            self._drop_gradients()
        else:
            self._guard.stop(model, found)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._clip_grad_norm(model) if grad_norm is None else grad_norm

    def _forget_step(self) -> None:
        """Leave nothing of a step that will not be done: no gradient, no sum."""
        self._drop_gradients()
        hash_of(self).pending = []

    def _drop_gradients(self) -> None:
        self.clone.factors.zero_grad()
        if self.clone.target_squares is not None:
            self.clone.target_squares.drop()

    # What is read --------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self._rows = shuffled_rows(self.args, self.train_dataset if train_dataset is None else train_dataset)
        return super()._get_train_sampler(train_dataset) if self._rows is None else self._rows

    def _run_epoch(self, model: Any, epoch: Any, *rest: Any, **named: Any) -> None:
        if self._rows is not None:  # accelerate does not reach it in a loader that skips the rows before a resume
            self._rows.set_epoch(epoch)
        super()._run_epoch(model, epoch, *rest, **named)

    # What is counted -----------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step, each row counted once, and the counts of all of them in all processes.

        The targets of the first step are measured here, if taps are divided by their size.
        """
        step = StepReader(self, self.clone.objective.mask_scope)
        batches, _ = super().get_batch_samples(step.read(epoch_iterator), num_batches, device)
        if not batches:
            return [], None
        counts, self._step_tokens, hash_of(self).pending = step.counted(batches)
        if counts[1] == 0:
            logger.warning(
                "step %d: no position of its %d batches counts, as all labels are -100; nothing is learned from them",
                self.state.global_step + 1,
                len(batches),
            )
        self._unlogged.begin_step(self._tr_loss)
        self.clone.measure_targets(batches)
        return batches, counts

    # What is logged ------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Trainer's, with every term of the loss added up on the device until it is logged."""
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = self._of_all_processes(loss)
        self._unlogged.add(terms_of(output, taps=self.args.log_taps))
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the terms since the last log, each a mean over steps."""
        steps, left_out = self._unlogged.steps, self._unlogged.left_out
        if "loss" in logs and steps + left_out > 0:
            terms, loss = all_terms(self, self._unlogged.take()), logs.pop("loss")
            if steps:  # Trainer's mean is over those that were left out too
                means = {name: value / steps for name, value in terms.items()}
                logs |= {"loss": loss * (steps + left_out) / steps, **means, "tokens": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's, with every row, whatever training drops."""
        if isinstance(eval_dataset, str) and not (
            isinstance(self.eval_dataset, dict) and eval_dataset in self.eval_dataset
        ):
            raise InputError(f"evaluate: got {eval_dataset!r}, expected a data set or the name of one of eval_dataset")
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The losses on a data set, each a mean over its tokens, and the perplexity exp(lm).

        Raises:
            InputError: The data set is empty, has no token to predict, or predictions are asked for.
        """
        if description == "Prediction":
            raise InputError("predict: a clone measures losses and predicts nothing; use evaluate, or clone.student")
        losses, rows = evaluate_set(self, self.clone, dataloader, taps=self.args.log_taps)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=rows)

    # What is saved -------------------------------------------------------------------------------------------------

    def _checkpoint_dir(self) -> Path:
        return self._run_dir() / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint_dir()
        if self.clone.target_squares is not None:
            self.clone.target_squares.fold()  # what is saved is of all processes
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with written_whole(folder, self.args.should_save, self.accelerator.wait_for_everyone):
                super()._save_checkpoint(model, trial)
                self._unlogged.save(self, folder, self._guard.state())
        except (OSError, RuntimeError, SafetensorError) as error:
            # Older checkpoints are rotated out only after a complete save, so they are all still there.
            before = last_checkpoint(self._run_dir())
            kept = f"the last complete one is {before}; resume" if before else "there is no earlier one; begin again"
            raise InputError(f"could not save {folder}: {error}; {kept} when there is room on the disk") from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(self._run_dir(), limit, folder, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        resume_clone(self.clone, Path(resume_from_checkpoint))
        self._guard.resumed = Path(resume_from_checkpoint)
        if self.optimizer is not None and is_bound(self.optimizer, self.clone.factors):
            refresh(self.optimizer, self.clone.factors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        rates = rates_of(self.optimizer)
        with readable(str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
        follow_schedule(self.optimizer, self.lr_scheduler, rates)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        load_clone(self.clone, Path(self.state.best_model_checkpoint))
