"""How teacher and student run: one after the other or layer by layer in turn, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..objective.comparison import Comparison
from ..objective.head import head_input
from ..objective.taps import Observer, Watch, observe
from ..plan.layers import model_blocks
from ..plan.roles import Plan, TapSpec
from .checkpointing import beside_the_record
from .compiled import CompiledBlocks
from .interleaved import interleave

Order = Literal["sequential", "interleaved"]


class Execution:
    """Runs the forward passes of both models up to the final hidden states, their taps compared on the way.

    Args:
        changed: Modules whose output either model changes in place after they have returned it (`objective/probe.py`).

    Raises:
        InputError: `order` is neither `sequential` nor `interleaved`.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        plan: Plan,
        order: Order,
        changed: frozenset[str] = frozenset(),
    ) -> None:
        if order not in get_args(Order):
            raise InputError(f"execution: got {order!r}, expected one of {', '.join(get_args(Order))}")
        self._teacher, self._student, self._plan, self._order = teacher, student, plan, order
        self._blocks = model_blocks(student)
        self._changed = changed
        # No lambdas: a copy of a clone must watch its own models.
        self._watch_teacher: Watch = partial(_watch, teacher, plan.teacher_width, changed)
        self._watch_student: Watch = partial(_watch, student, plan.student_width, changed)

    @property
    def overwrites_targets(self) -> bool:
        """Whether the comparison may reuse the teacher's outputs as its buffer: true if the teacher has finished."""
        return self._order == "sequential"

    def compile(self, **options: Any) -> None:
        """Compile each block of both models, with options of `torch.compile`."""
        taps = self._plan.taps
        widths = self._plan.teacher_width, self._plan.student_width
        blocks, changed = self._blocks, self._changed
        self._watch_teacher = CompiledBlocks(self._teacher, blocks, taps, widths[0], changed, **options).observe
        self._watch_student = CompiledBlocks(self._student, blocks, taps, widths[1], changed, **options).observe

    def run(self, inputs: Mapping[str, Any], compared: Comparison, teach: bool) -> tuple[Tensor, Tensor | None]:
        """Final hidden states of the student [n, d_S] and, if it is to `teach`, of the teacher [n, d_T]."""
        with ExitStack() as stack:
            student_head = stack.enter_context(head_input(self._student))
            teacher_head = stack.enter_context(head_input(self._teacher))

            def teacher() -> None:
                with torch.no_grad(), compared.watch_teacher(self._watch_teacher):
                    self._teacher(**inputs)

            def student() -> None:
                with compared.watch_student(self._watch_student_beside):
                    self._student(**inputs)

            if teach:
                self._run_both(teacher, student)
            else:
                student()
        return student_head.hidden.flatten(0, 1), teacher_head.hidden.flatten(0, 1) if teach else None

    def _watch_student_beside(self, taps: Iterable[TapSpec], observer: Observer) -> AbstractContextManager[None]:
        """The student watched by an observer whose operators no checkpoint records."""

        def beside(tap: TapSpec, given: Tensor, output: Tensor) -> None:
            with beside_the_record():
                observer(tap, given, output)

        return self._watch_student(taps, beside)

    def _run_both(self, teacher: Callable[[], None], student: Callable[[], None]) -> None:
        if self._order == "sequential":
            teacher()
            student()
        else:
            theirs, ours = ([m.get_submodule(name) for name in self._blocks] for m in (self._teacher, self._student))
            interleave(teacher, student, theirs, ours, self._student.device)


def _watch(
    model: PreTrainedModel, width: int, changed: frozenset[str], taps: Iterable[TapSpec], observer: Observer
) -> AbstractContextManager[None]:
    return observe(model, taps, width, observer, changed)
