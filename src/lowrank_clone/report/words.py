"""The report's question, its answer, and its table of facts, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from .view import Grid, RunView, Student


def question(runs: Sequence[RunView]) -> str:
    """What the report is asked."""
    if len(runs) == 1:
        run = runs[0]
        if run.student is None:
            return f"How close does the student come to its teacher, {run.teacher}?"
        share = run.student.parameters / run.student.teacher_parameters
        return (
            f"How close does a student of {run.student.width:,} channels, with {share:.0%} of the parameters, come to "
            f"its teacher, {run.teacher}?"
        )
    teachers = list(dict.fromkeys(run.teacher for run in runs))
    whom = f"their teacher, {teachers[0]}" if len(teachers) == 1 else "its teacher"
    return f"Which of these {len(runs)} students comes closest to {whom}?"


def answer(runs: Sequence[RunView]) -> str:
    """What the runs say to it, as far as they went."""
    if len(runs) == 1:
        return _one(runs[0])
    found = [run for run in runs if "now" in run.losses and "teacher" in run.losses]
    if len(found) < len(runs):
        missing = ", ".join(run.name for run in runs if run not in found)
        return f"It can't be told yet: no validation losses of {missing}."
    if reasons := incomparable(runs):
        return f"Their losses can't be ranked. {' '.join(reasons)}"
    ranked = sorted(found, key=_gap)
    best, others = ranked[0], ranked[1:]
    told = ", ".join(f"{run.name} {run.losses['now']:.3f}" for run in others)
    return (
        f"{best.name}: {best.losses['now']:.3f} nats per token on the same held-out text, {_beside(best)} after "
        f"{best.tokens:,} training tokens; then {told}.{_unfinished(runs)}{_unequal(runs)}"
    )


def incomparable(runs: Sequence[RunView]) -> list[str]:
    """Why validation losses of these runs can't be compared; empty if they can."""
    if len(runs) < 2 or (runs[0].text is not None and len({run.text for run in runs}) == 1):
        return []
    found = []
    vocabularies = {run.vocabulary for run in runs}
    if None in vocabularies:
        unknown = ", ".join(run.name for run in runs if run.vocabulary is None)
        found.append(f"Whether they have the same tokenizer is not known of {unknown}.")
    elif len(vocabularies) > 1:
        sizes = ", ".join(f"{run.name} {run.vocabulary}" for run in runs)
        found.append(
            f"They have other tokenizers ({sizes}), and nats per token of one are not those of another: compare bits "
            "per byte on the same text."
        )
    if None in {run.text for run in runs}:
        unknown = ", ".join(run.name for run in runs if run.text is None)
        found.append(f"On which text they were validated is not recorded of {unknown}.")
    elif not found:
        found.append("They were validated on other texts: give all of them the same data and hold-out.")
    return found


def facts(runs: Sequence[RunView]) -> Grid:
    """The runs side by side, a column for each."""
    rows = {
        "teacher": [run.teacher for run in runs],
        "channels": [_of(run, lambda s: f"{s.teacher_width:,} → {s.width:,}") for run in runs],
        "parameters": [_of(run, lambda s: f"{short(s.teacher_parameters)} → {short(s.parameters)}") for run in runs],
        "state": [state(run) for run in runs],
        "training tokens": [f"{run.tokens:,}" for run in runs],
        "validation loss, teacher": [_loss(run, "teacher") for run in runs],
        "before training": [_loss(run, "before") for run in runs],
        "student": [_loss(run, "now") for run in runs],
        "gap to the teacher": [f"{_gap(run):.3f}" if _known(run) else "–" for run in runs],
        "gap closed by training": [_closed(run) or "–" for run in runs],
        "tokens per second": [_median(run, "tokens_per_second", ",.0f") for run in runs],
        "memory": [_most(run, "memory_gib") for run in runs],
        "device": [run.versions.get("device", "–") for run in runs],
        "started": [run.versions.get("started", "–").replace("T", " ").replace("+00:00", " UTC") for run in runs],
    }
    return Grid(("", *(run.name for run in runs)), tuple((name, *cells) for name, cells in rows.items()))


def differences(runs: Sequence[RunView]) -> Grid:
    """The recipes' fields in which the runs differ."""
    names = sorted({name for run in runs for name in run.settings})
    rows = [(name, *(run.settings.get(name, "–") for run in runs)) for name in names]
    return Grid(("field", *(run.name for run in runs)), tuple(row for row in rows if len(set(row[1:])) > 1))


def state(run: RunView) -> str:
    """How far a run is."""
    of = f" of {run.steps:,}" if run.steps is not None else ""
    return f"{'finished' if run.finished else 'unfinished'}, step {run.step:,}{of}"


def short(number: float) -> str:
    """A count in three digits: 89.7M for 89,676,672."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def _one(run: RunView) -> str:
    if not _known(run):
        return "It can't be told yet: the run has no validation losses so far."
    now, teacher = run.losses["now"], run.losses["teacher"]
    begun = (
        "After"
        if run.finished
        else f"So far, at step {run.step:,}{f' of {run.steps:,}' if run.steps else ''} and after"
    )
    on = "" if run.validation_tokens is None else f"{run.validation_tokens:,} "
    closed = _closed(run)
    return (
        f"{begun} {run.tokens:,} training tokens it loses {now:.3f} nats per token on {on}held-out tokens, "
        f"{_beside(run)} with {teacher:.3f} (perplexity {_perplexity(now)} for {_perplexity(teacher)})."
        + (f" Training closed {closed} of the gap that its start left." if closed else "")
    )


def _known(run: RunView) -> bool:
    return "now" in run.losses and "teacher" in run.losses


def _gap(run: RunView) -> float:
    return run.losses["now"] - run.losses["teacher"]


def _beside(run: RunView) -> str:
    return f"{abs(_gap(run)):.3f} {'above' if _gap(run) >= 0 else 'below'} its teacher"


def _closed(run: RunView) -> str:
    if not _known(run) or "before" not in run.losses or run.step == 0:
        return ""
    before = run.losses["before"] - run.losses["teacher"]
    share = 1 - _gap(run) / before if before > 0 else math.nan
    return f"{share:.0%}" if share >= 0 else ""


def _unfinished(runs: Iterable[RunView]) -> str:
    names = [run.name for run in runs if not run.finished]
    return f" Not finished: {', '.join(names)}." if names else ""


def _unequal(runs: Sequence[RunView]) -> str:
    seen = {run.tokens for run in runs}
    return f" They saw unequal numbers of tokens ({min(seen):,} to {max(seen):,})." if len(seen) > 1 else ""


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):,.4g}"


def _loss(run: RunView, which: str) -> str:
    return f"{run.losses[which]:.4f}" if which in run.losses else "–"


def _of(run: RunView, say: Callable[[Student], str]) -> str:
    return "–" if run.student is None else say(run.student)


def _values(run: RunView, key: str) -> list[float]:
    return [float(line[key]) for line in run.metrics if isinstance(line.get(key), (int, float))]


def _median(run: RunView, key: str, form: str) -> str:
    values = _values(run, key)
    return format(statistics.median(values), form) if values else "–"


def _most(run: RunView, key: str) -> str:
    values = _values(run, key)
    return f"{max(values):.2f} GiB at most" if values else "–"
