"""What a report shows of a run: plain data, gathered by `run/report.py` and drawn by this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_RUNS = 10  # side by side: there are as many colours that people can tell apart


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Student:
    """The shapes of a run: residual widths and parameters of teacher and student, its plan by group, remarks on it."""

    teacher_width: int
    width: int
    teacher_parameters: int
    parameters: int
    layers: int
    vocabulary: int
    groups: Grid
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A piece of validation text, how it goes on, and how both models go on, greedily."""

    prompt: str
    truth: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Rank:
    """Effective ranks of the residual stream after `layer` layers (0: what the first layer is given)."""

    layer: int
    teacher: float
    student: float


@dataclass(frozen=True)
class Tap:
    """Where a compared activation is: `name` is the parameter's under which it is logged, `place` that in its layer."""

    name: str
    layer: int
    place: str


@dataclass(frozen=True)
class Score:
    """A model's score at a task, with its standard error where it is known."""

    task: str
    metric: str
    model: str
    value: float
    error: float | None


@dataclass(frozen=True)
class RunView:
    """A run as far as it went.

    name: A short one that no other run of the report has. teacher: What it is called. losses: On validation text, in
    nats per token, of `teacher`, `before` and `now`. step, steps: Optimiser steps, done and all, where that is known.
    metrics: Lines of metrics.jsonl. text: What tells validation text and its tokens from others. settings: The
    recipe's fields by their dotted names. notes: What is missing and why.
    """

    name: str
    folder: str
    teacher: str
    step: int
    steps: int | None
    tokens: int
    finished: bool
    losses: Mapping[str, float]
    metrics: Sequence[Mapping[str, Any]]
    recipe: str
    settings: Mapping[str, str]
    student: Student | None = None
    taps: tuple[Tap, ...] = ()
    validation_tokens: int | None = None
    text: str | None = None
    vocabulary: str | None = None
    samples: tuple[Sample, ...] = ()
    ranks: tuple[Rank, ...] = ()
    rank_tokens: int = 0
    events: Grid = field(default_factory=lambda: Grid(("step", "what", "details"), ()))
    scores: tuple[Score, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
