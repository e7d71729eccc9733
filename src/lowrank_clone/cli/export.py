"""`lrc export`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..errors import InputError
from ..run.execute import make_clone
from ..run.export import CardFacts, export_student, teacher_license
from ..training.checkpoint import load_clone
from .saved import read_saved
from .tables import console, quiet_bars


def run(arguments: Namespace) -> None:
    """`lrc export RUN OUTPUT`"""
    quiet_bars()
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`{output}` is not empty; give a new folder")
    saved = read_saved(Path(arguments.run))
    clone = make_clone(saved.job, None)
    load_clone(clone, saved.checkpoint)
    losses = {f"student at step {line['step']}": line["eval_lm"] for line in saved.metrics if "eval_lm" in line}
    model = saved.job.recipe.teacher.model
    facts = CardFacts(model, teacher_license(model), saved.tokens, losses)
    export_student(clone, output, saved.job.tokenizer, saved.job.recipe, facts)
    console.print(f"The student of step {saved.step} is in {output}.")
