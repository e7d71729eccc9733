"""`transformers.Trainer` for a `CloneModel`: what differs is what is optimised, counted, logged and saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, default_data_collator
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from ..errors import InputError, NonFiniteLoss
from ..model import CloneModel
from ..objective.output import CloneOutput
from ..objective.tokens import count_tokens
from .arguments import CloneArguments
from .checkpoint import last_checkpoint, load_clone, readable, resume_clone, write_clone
from .manifest import written_whole
from .optim import MuonAdamW, bind, is_bound, refresh
from .progress import Progress
from .saving import TimedCheckpoints, rotate


class CloneTrainer(Trainer):
    """Train a `CloneModel`. Everything that `Trainer` does stays Trainer's, but for these points:

    * the optimiser holds the factors (`optim.bind`), and the gradient norm is theirs;
    * tokens are counted over the whole accumulated batch, for the LM and for the positions apart;
    * `lm`, `kl`, `clone` and every tap are logged next to the loss, evaluation adds the perplexity;
    * checkpoints hold the factors and never the teacher; `save_model` writes the student as a plain checkpoint.

    Raises:
        InputError: `model` is no `CloneModel`.
        NonFiniteLoss: While training, after saving the last good state.
    """

    model: CloneModel
    args: CloneArguments

    def __init__(self, model: CloneModel, args: CloneArguments, **kwargs: Any) -> None:
        if not isinstance(model, CloneModel):
            raise InputError(f"CloneTrainer: got a model of type {type(model).__name__}, expected a CloneModel")
        kwargs.setdefault("data_collator", default_data_collator)
        if args.muon:
            options = {
                "lr": args.learning_rate,
                "momentum": args.muon_momentum,
                "betas": (args.adam_beta1, args.adam_beta2),
                "eps": args.adam_epsilon,
            }
            kwargs.setdefault("optimizer_cls_and_kwargs", (MuonAdamW, options))
        super().__init__(model=model, args=args, **kwargs)
        self.clone = model
        self._terms: dict[str, Tensor] = {}
        self._term_steps = 0
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        self.add_callback(Progress(steps=not args.disable_tqdm))
        self.add_callback(TimedCheckpoints(args.save_minutes))

    # What is optimised ---------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, over the factors."""
        if self.optimizer is None:
            self.optimizer = bind(super().create_optimizer(self.clone.factors), self.clone.factors)
        return self.optimizer

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay is for matrices."""
        return [name for name, factor in model.named_parameters() if factor.ndim > 1]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self._term_steps += 1
        self.clone.factors.pull()
        limit = self.args.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.clone.factors.parameters(), limit)
        if not torch.isfinite(norm):
            self._stop_at_non_finite(model, norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._clip_grad_norm(model) if grad_norm is None else grad_norm

    def _stop_at_non_finite(self, model: nn.Module, norm: Tensor) -> None:
        step, size = self.state.global_step, self.get_total_train_batch_size(self.args)
        terms = ", ".join(f"{name} {float(value):.6g}" for name, value in self._terms.items() if "/" not in name)
        bad = next((name for name, value in self._terms.items() if "/" in name and not value.isfinite()), None)
        self.clone.factors.zero_grad()
        if self.clone.target_squares is not None:
            self.clone.target_squares.drop()
        if last_checkpoint(self._run_dir()) != self._checkpoint_dir():  # a good one is not to be written over
            self._save_checkpoint(model, trial=None)
        raise NonFiniteLoss(
            f"step {step + 1}: the gradient norm is {float(norm)} (since the last log: {terms}"
            + (f"; first non-finite: {bad}" if bad else "")
            + f"); batch: samples {step * size} to {(step + 1) * size - 1} of the sampler's order. "
            f"The state before this step is in {self._checkpoint_dir()}"
        )

    # What is counted -----------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Trainer's, after which the first batch's targets are measured if taps are divided by their size."""
        batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) > 1:
            self.clone.measure_targets([self._prepare_inputs(batch) for batch in batches])
        return batches, counts

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([count_tokens(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted here: see `lrc plan`."""
        return 0

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
        terms = {name: value.detach() for name, value in _terms(output, self.args.log_taps and model.training).items()}
        if model.training:
            self.state.num_input_tokens_seen += inputs["input_ids"].numel() * self.args.world_size
        else:
            # An evaluation batch's terms are its own means, to be weighed; micro-batches add up as they are.
            targets, positions = num_items_in_batch.unbind()
            terms = {name: value * (targets if name == "lm" else positions) for name, value in terms.items()}
            terms |= {"targets": targets, "positions": positions}
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the terms since the last log, each a mean over steps."""
        steps = self._term_steps
        if "loss" in logs and self._terms and steps > 0:
            logs |= {name: value / steps for name, value in self._read_terms().items()}
            logs["tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _read_terms(self) -> dict[str, float]:
        """The accumulated terms, summed over processes; the one place where they are read."""
        names, values = list(self._terms), list(self._terms.values())
        total = self.accelerator.reduce(torch.stack([v.float() for v in values]), "sum").tolist()
        self._terms, self._term_steps = {}, 0
        return dict(zip(names, total, strict=True))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, with `lm`, `kl`, `clone` and their `loss` as means over tokens, and the perplexity exp(lm)."""
        waiting, steps, self._terms = self._terms, self._term_steps, {}
        with torch.random.fork_rng(devices=[]):  # evaluating or not must not change what is trained
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        terms = self._read_terms()
        targets, positions = terms.pop("targets"), terms.pop("positions")
        means = {name: value / max(targets if name == "lm" else positions, 1) for name, value in terms.items()}
        goal = self.clone.objective
        weights = {"lm": goal.lm_weight, "kl": goal.kl_weight, "clone": goal.clone_weight}
        means["loss"] = sum(weights[name] * value for name, value in means.items())
        assert output.metrics is not None
        output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        output.metrics[f"{prefix}_perplexity"] = math.exp(min(means["lm"], 700.0))
        self._terms, self._term_steps = waiting, steps
        return output

    # What is saved -------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student, a plain `transformers` checkpoint; inside checkpoints, the factors."""
        folder = Path(output_dir or self._run_dir())
        if not self.args.should_save:
            return
        if _internal_call and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            write_clone(self.clone, folder)
            return
        self.clone.student.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _run_dir(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _checkpoint_dir(self) -> Path:
        return self._run_dir() / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint_dir()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with written_whole(folder, self.args.should_save, self.accelerator.wait_for_everyone):
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # Older checkpoints are rotated out only after a complete save, so they are all still there.
            before = last_checkpoint(self._run_dir())
            kept = f"the last complete one is {before}" if before else "there is no earlier one"
            raise InputError(f"could not save {folder}: {error}; {kept}; make room on the disk and resume") from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(self._run_dir(), limit, folder, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        resume_clone(self.clone, Path(resume_from_checkpoint))
        if self.optimizer is not None and is_bound(self.optimizer, self.clone.factors):
            refresh(self.optimizer, self.clone.factors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        load_clone(self.clone, Path(self.state.best_model_checkpoint))


def _terms(output: CloneOutput, taps: bool) -> dict[str, Tensor]:
    named = {"lm": output.lm, "kl": output.kl, "clone": output.clone}
    if taps and output.taps is not None:
        named |= {f"tap/{name}": value for name, value in output.taps.items()}
    return {name: value for name, value in named.items() if value is not None}
