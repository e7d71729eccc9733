"""Teacher + student + taps -> named losses: the objective of Low-Rank Clone (arXiv 2505.12781, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .errors import InputError
from .execution.checkpointing import checkpointing_options, enable_checkpointing, set_training
from .execution.pair import Execution, Order
from .factors.links import Targets, link_all
from .factors.module import FactoredModule, Successors
from .factors.parameterize import check_kinds, reparameterize
from .factors.student import build_student
from .factors.teacher import as_type, check_teacher
from .objective.batch import IGNORED, checked_batch, checked_count
from .objective.comparison import Comparison, TargetSquares, call_name
from .objective.documents import CheckedInputs
from .objective.head import read_head
from .objective.lm_kl import lm_kl_loss
from .objective.objective import Objective, objective_of
from .objective.output import CloneOutput
from .objective.probe import probe_taps
from .objective.taps import chosen, linear_of
from .objective.tokens import count_tokens, counted_in
from .plan.classify import make_plan
from .plan.roles import TapSpec
from .ranges import check_choice
from .starts.random import factors_of


class CloneModel(FactoredModule):
    """A frozen teacher and the student cloned from it, as one module that returns the loss.

    `student` is a plain model whose weights are leaves; `factors` are what is trained (`factors/`, `optim.bind`),
    outside the module tree so that engines which reduce or shard gradients see leaves only. In a config.json that
    `student.save_pretrained` writes, transformers 4 finds no rotary base; `save_for_readers` serves both versions.

    Args:
        teacher: Any decoder language model; it is frozen and put into eval mode.
        hidden_size: The student's residual width `d_S`.
        student: Other fields of the student's config to override, for instance `{"rms_norm_eps": 1e-5}`.
        dtype: The student's dtype (the teacher's unless given). Factors are float32 in any case.
        objective: What is minimised (`Objective()` unless given).
        terms: Fields of the objective given one by one, for instance `temperature=1.0`; they change `objective`.
        start: `random` (`factor_std`, `seed`), factors by name (see `starts/`), or `scratch`: the student as its family
            starts it, trained directly with nothing of the teacher's (for baselines).
        parameterization: `projected`, `dense` or `core` for each group of matrices (`factors/parameterize.py`).
        taps: Which of the plan's taps to compare; all unless given.
        head_factor: Whether an untied LM head has a Z of its own or shares the embedding's.
        execution: `sequential`, or `interleaved`: teacher and student layer by layer in turn.

    Raises:
        InputError: The teacher can't be cloned, or an argument is not usable.
    """

    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    main_input_name = "input_ids"

    def __init__(
        self,
        teacher: PreTrainedModel,
        hidden_size: int,
        *,
        student: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        objective: Objective | None = None,
        start: Mapping[str, Tensor] | Literal["random", "scratch"] = "random",
        factor_std: float = 0.02,
        seed: int = 0,
        parameterization: Mapping[str, str] | None = None,
        taps: Callable[[TapSpec], bool] | None = None,
        head_factor: Literal["own", "embedding"] = "own",
        execution: Order = "sequential",
        **terms: Any,
    ) -> None:
        super().__init__()
        self.objective = objective = objective_of(objective, terms)
        check_choice("head_factor", head_factor, ("own", "embedding"))
        check_teacher(teacher)
        self.plan = make_plan(teacher.config, hidden_size, student)
        self.teacher = teacher = as_type(teacher, self.plan.teacher_config).requires_grad_(False).eval()
        wanted = chosen(self.plan.taps, taps) if objective.clone_weight != 0 else []
        self._teacher_head = read_head(teacher)
        self.probe = probe_taps(teacher, self.plan.taps, self.plan.teacher_width)
        self.taps = self.probe.comparable(wanted)
        factors = factors_of(start, self.plan, factor_std, seed)
        self.scratch = factors is None
        dtype = teacher.dtype if dtype is None else dtype
        self.student = build_student(teacher, self.plan, dtype, inherit=not self.scratch)
        writes = [tap for tap in self.taps if tap.kind == "write"]
        at_teacher = [tap for tap in writes if objective.attn_out_tap == "teacher" and tap.group == "attention"]
        self._through = {tap.name: linear_of(teacher, tap) for tap in at_teacher}
        self.targets = Targets([tap.name for tap in writes if tap not in at_teacher], self.plan, self.student)
        self.targets.requires_grad_(objective.target_gradient)
        self.factors = link_all(teacher, self.student, self.plan, factors, self.targets, head_factor == "embedding")
        self.kinds = check_kinds(self.plan, {})
        self.reparameterize({} if parameterization is None else parameterization)
        self.factors.push()
        runs = self.probe.runs
        squares = TargetSquares(call_name(tap.name, i) for tap in self.taps for i in range(runs[tap.name].calls))
        self.target_squares = squares if objective.clone_normalization == "target" else None
        self._student_head = read_head(self.student)
        self._inputs = CheckedInputs(self.plan)
        self.vocab_size = len(self._student_head.weight)
        changed = self.probe.changed | probe_taps(self.student, (), self.plan.student_width).changed
        self._execution = Execution(teacher, self.student, self.plan, execution, changed)
        self.train()

    @property
    def config(self) -> Any:
        """The student's config."""
        return self.student.config

    def reparameterize(self, kinds: Mapping[str, str]) -> None:
        """Let groups be `projected`, `dense` or `core` from now on. An optimiser made before needs `optim.refresh`.

        Raises:
            InputError: A group or kind is unknown, or can't be had.
        """
        basis = dict(self.teacher.named_parameters(remove_duplicate=False))
        self.kinds = reparameterize(self.factors, self.plan, basis, self.kinds, kinds)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        return_loss: bool = True,
        **unknown: Any,
    ) -> CloneOutput:
        """The loss of one micro-batch. Which positions count in which term is decided in `objective/tokens.py`.

        Args:
            input_ids: [batch, length], whole numbers.
            attention_mask: [batch, length], 1 for a token and 0 for padding.
            labels: [batch, length], not shifted: the ids themselves unless given, and -100 where a token is not to be
                learned from.
            position_ids: [batch, length] or [1, length]; a packed row's documents begin where they restart.
            num_items_in_batch: [2], the sum of `count_tokens` over the micro-batches of one step, which `accumulate`
                takes for you; the micro-batch's own unless given.
            return_loss: Tells Trainer that there is a loss without labels.

        Raises:
            InputError: The batch is not usable, or holds something else.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        batch = checked_batch({**given, "position_ids": position_ids, **unknown}, self.vocab_size)
        targets, valid = counted_in(batch, self.objective.mask_scope)
        lm_count = kl_count = None
        if num_items_in_batch is not None:
            own = torch.stack([(targets != IGNORED).sum(), valid.sum()])
            lm_count, kl_count = checked_count(num_items_in_batch, own).unbind()
        every = attention_mask is None and (labels is None or self.objective.mask_scope == "lm")
        compared = self._comparison(valid.numel(), None if every else valid, kl_count)

        student, teacher = self._hidden_states(batch, compared)
        if attention_mask is not None:
            rows = (valid | (targets != IGNORED)).nonzero().squeeze(-1)
            student, targets, valid = student[rows], targets[rows], valid[rows]
            teacher = None if teacher is None else teacher[rows]
        total, lm, kl = lm_kl_loss(
            *(student, self._student_head.of(self.student)),
            *(teacher, self._teacher_head.of(self.teacher)),
            *(targets, valid),
            temperature=self.objective.temperature,
            lm_weight=self.objective.lm_weight,
            kl_weight=self.objective.kl_weight,
            lm_count=lm_count,
            kl_count=kl_count,
        )
        output = CloneOutput(loss=total, lm=lm, kl=None if teacher is None else kl)
        if compared.losses:
            clone = torch.stack(list(compared.losses.values())).sum()
            output.loss = total + self.objective.clone_weight * clone
            output.clone = clone.detach()
            output.taps, output.relative = {k: mse.detach() for k, mse in compared.losses.items()}, compared.relative
            if self.training and self.target_squares is not None:
                positions = valid.sum()
                self.target_squares.add(compared.squares, positions if kl_count is None else kl_count, positions)
        return output

    def _hidden_states(self, batch: Mapping[str, Tensor], compared: Comparison) -> tuple[Tensor, Tensor | None]:
        """The student's [n, d_S], and the teacher's [n, d_T] where there is a KL."""
        inputs = self._inputs.of(batch, self.student)
        teach = self.objective.kl_weight != 0 or self.objective.clone_weight != 0
        student, teacher = self._execution.run(inputs, compared, teach)
        return student, teacher if self.objective.kl_weight != 0 else None

    def _comparison(self, tokens: int, valid: Tensor | None, count: Tensor | None) -> Comparison:
        scales = None if self.target_squares is None else self.target_squares.scales(self.factors.pushes)
        taps = self.taps if self.objective.clone_weight != 0 else ()
        overwrite = self._execution.overwrites_targets
        given = (tokens, dict(self.targets.items()), self._through, valid, count, scales, overwrite)
        return Comparison(taps, self.probe.runs, *given, measure=not self.training)

    def accumulate(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[CloneOutput]:
        """The outputs of one optimiser step's micro-batches, whose losses add up to that of one large batch.

            for output in clone.accumulate(micro_batches):
                output.loss.backward()
            optimizer.step()

        Terms are sums over a micro-batch divided by the counts of all, so they are added and not averaged. Each output
        is computed when the loop asks for it. For one process; `CloneTrainer` counts over several.

        Args:
            batches: What `forward` takes, without `num_items_in_batch`.

        Raises:
            InputError: A batch is not usable, or there is none.
        """
        several = isinstance(batches, Iterable) and not isinstance(batches, (Mapping, Tensor))
        parts = [checked_batch(batch) for batch in batches] if several else []
        if not parts:
            got = "no batch" if several else f"one {type(batches).__name__}"
            raise InputError(f"accumulate: got {got}, expected the micro-batches of one optimiser step, as a list")
        counts = torch.stack([count_tokens(batch, self.objective.mask_scope) for batch in parts]).sum(0)
        self.measure_targets(parts)
        for batch in parts:
            yield self(**batch, num_items_in_batch=counts)

    @property
    def needs_targets(self) -> bool:
        """Whether taps are divided by their targets' mean squares, and there is no mean yet to divide by."""
        return self.target_squares is not None and self.target_squares.scales(self.factors.pushes) == "own"

    @torch.no_grad()
    def measure_targets(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Take the first running mean of the taps' targets from these micro-batches, where one is needed and missing.

        So the first step divides each of its micro-batches by the same numbers, in every process.
        """
        if not self.needs_targets:
            return
        assert self.target_squares is not None
        mode = self.training
        self.train()
        try:
            for batch in batches:
                self(**batch)
        finally:
            self.train(mode)
        self.target_squares.fold()

    def compile_layers(self, **options: Any) -> None:
        """Compile every layer of both models by itself, with options of `torch.compile`; the loss stays what it is."""
        self._execution.compile(**options)
        self.compiled = True

    def train(self, mode: bool = True) -> CloneModel:
        """Switch between training and evaluation. Neither model ever draws noise: there is no dropout in a clone."""
        super().train(mode)
        self.teacher.eval()
        set_training(self.student, mode)
        return self

    def follow(self, successors: Successors) -> None:
        """Go where the parameters went."""
        self._teacher_head = self._teacher_head.of(self.teacher)
        self._student_head = self._student_head.of(self.student)
        self._through = {tap.name: linear_of(self.teacher, tap) for tap in self.taps if tap.name in self._through}
        if self.target_squares is not None:
            self.target_squares.to(self.student.device)

    def get_extra_state(self) -> dict[str, Any]:
        """The factors, and the running means of the taps' targets."""
        squares = {} if self.target_squares is None else self.target_squares.state_dict()
        return {**super().get_extra_state(), "target_squares": squares}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take both."""
        super().set_extra_state(state)
        if self.target_squares is not None:
            self.target_squares.load_state_dict(state["target_squares"], self.student.device)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Checkpoint the student's layers; the teacher keeps no activations anyway.

        Args:
            activation_checkpointing_kwargs, kwargs: Options of `torch.utils.checkpoint`, `every_n_layers` and `offload`
                of transformers, and `recompute`: `all` of a layer, or what is `elementwise` (`checkpointing.py`).

        Raises:
            InputError: The model can't be checkpointed, or an option is not usable (`checkpointing_options`).
        """
        options = checkpointing_options(self.config, (activation_checkpointing_kwargs or {}) | kwargs)
        enable_checkpointing(self.student, options)
        set_training(self.student, self.training)
