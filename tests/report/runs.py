"""Runs as a report sees them, made up: what the tests of its words, figures and page look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank_clone.report.view import Grid, Rank, RunView, Sample, Score, Student, Tap

GROUPS = Grid(("group", "tensors", "deployed parameters"), (("attention", "8", "1,000"),))
STUDENT = Student(24, 16, 20_000, 10_000, layers=2, vocabulary=96, groups=GROUPS, remarks=("A remark.",))
PLACES = ("self_attn.q_proj", "mlp.down_proj")


def metrics(steps: int = 6, evaluations: int = 3, loss: float = 5.0) -> list[dict[str, Any]]:
    """Losses that fall by 0.1 a step from `loss`, 64 tokens a step, and evaluations spread over the steps from 0 on."""
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            terms = {"loss": 2 * loss, "lm": loss - 0.1 * step, "kl": 1.0 / step, "clone": 3.0 / step, "grad_norm": 1.0}
            speed = {"learning_rate": 1e-3, "tokens_per_second": 1000.0 + step, "memory_gib": 0.5}
            lines.append({"step": step, **terms, **speed, "tokens": 64 * step})
        if step % max(1, steps // max(1, evaluations - 1)) == 0:
            errors = {
                f"eval_relative/model.layers.{layer}.{place}.weight": (1 + layer + i) / (step + 1)
                for layer in range(2)
                for i, place in enumerate(PLACES)
            }
            lines.append({"step": step, "eval_lm": loss - 0.1 * step, "eval_kl": 0.5, "eval_clone": 2.0, **errors})
    return lines


def view(name: str = "a", **changed: Any) -> RunView:
    """A finished run that has everything."""
    taps = tuple(Tap(f"model.layers.{layer}.{place}.weight", layer, place) for layer in range(2) for place in PLACES)
    full = RunView(
        name=name,
        folder=f"/runs/{name}",
        teacher="Big",
        step=6,
        steps=6,
        tokens=384,
        finished=True,
        losses={"teacher": 3.0, "before": 5.0, "now": 4.5},
        metrics=metrics(),
        recipe="student:\n  hidden_size: 16\n",
        settings={"student.hidden_size": "16"},
        student=STUDENT,
        taps=taps,
        validation_tokens=248,
        text="abc",
        vocabulary="96 entries",
        samples=(Sample("Once", " upon", " a time", " a tree"),),
        ranks=(Rank(0, 9.0, 6.0), Rank(1, 12.0, 6.5), Rank(2, 12.5, 5.5)),
        rank_tokens=256,
        events=Grid(("step", "what", "details"), (("3", "spike", "lm 9"),)),
        scores=(Score("arc_easy", "acc", "student", 0.4, 0.01),),
        versions={"python": "3.11", "device": "x86_64", "started": "2026-01-02T03:04:05+00:00"},
    )
    return replace(full, **changed)
