"""`lrc plan`."""

from __future__ import annotations

from argparse import Namespace

from ..recipe.load import load_recipe
from ..run.demo_teacher import with_installed_teacher


def run(arguments: Namespace) -> None:
    """`lrc plan RECIPE [section.key=value ...]`"""
    recipe = with_installed_teacher(load_recipe(arguments.recipe, arguments.overrides))

    # Imported here: what was checked until now should not wait for PyTorch.
    import torch

    from ..run.forecast import time_lines
    from ..run.job import plan_of
    from .tables import console, print_plan

    plan = plan_of(recipe)
    cost = print_plan(recipe, plan)
    if recipe.training.total_tokens is not None:
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        for line in time_lines(cost, recipe.training.total_tokens, device, plan.teacher_width):
            console.print(line)
