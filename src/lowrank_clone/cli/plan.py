"""`lrc plan`."""

from __future__ import annotations

from argparse import Namespace

from ..recipe.load import load_recipe
from ..run.installed import with_installed_teacher


def run(arguments: Namespace) -> None:
    """`lrc plan RECIPE [section.key=value ...]`"""
    recipe = with_installed_teacher(load_recipe(arguments.recipe, arguments.overrides))

    # Imported here: what was checked until now should not wait for PyTorch.
    from ..run.job import plan_of
    from .tables import print_plan

    print_plan(recipe, plan_of(recipe))
