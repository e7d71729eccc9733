"""What can be found wrong with a recipe in a second: no import of PyTorch, transformers or datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..data.check import check_sources
from ..recipe.schema import Recipe


def with_demo_teacher(recipe: Recipe) -> Recipe:
    """The recipe with the installed teacher where the shipped one says `demo`.

    Raises:
        InputError: The package that holds the demo's teacher is not installed.
    """
    if recipe.teacher.model != "demo" or Path("demo").exists():
        return recipe
    from .demo import teacher_file

    return replace(recipe, teacher=replace(recipe.teacher, model=str(teacher_file())))


def check_early(recipe: Recipe) -> None:
    """Check what needs no model and no tokenizer.

    Raises:
        InputError: The same that `job.check` would raise seconds later.
    """
    check_sources(recipe.data)
