"""Which starts there are, and that a recipe, the library and a start's file agree on them."""

from __future__ import annotations

import pytest
import torch
from tiny import batch, tiny_model

import lowrank_clone
from lowrank_clone.recipe.schema import MethodConfig
from lowrank_clone.starts.registry import STARTS, StartInputs, make_start


def test_every_file_of_the_folder_is_a_start_that_recipes_can_name() -> None:
    assert set(STARTS) >= {"random", "channels", "calibrated"} and "registry" not in STARTS
    for name in STARTS:
        assert MethodConfig(init=name).init == name


@pytest.mark.parametrize("name", STARTS)
def test_a_start_gives_a_factor_for_every_matrix(name: str) -> None:
    teacher = tiny_model("gemma2")
    plan = lowrank_clone.make_plan(teacher.config, 16)
    factors = make_start(name, StartInputs(teacher, plan, [batch(8, 32)], factor_std=0.1, seed=3))
    assert {role.name for role in plan.of_kind("read", "write")} <= set(factors) <= set(plan.roles)
    for role in plan.of_kind("read", "write"):
        z = factors[role.name]
        assert z.shape == (24, 16) and z.dtype == torch.float32 and z.isfinite().all()


def test_the_public_functions_give_what_a_recipe_gets() -> None:
    teacher, text = tiny_model("llama"), [batch(8, 32)]
    plan = lowrank_clone.make_plan(teacher.config, 16)
    public = {
        "random": lowrank_clone.random_start(plan, 0.1, 3),
        "channels": lowrank_clone.channels_start(teacher, plan, text),
        "calibrated": lowrank_clone.calibrated_start(teacher, plan, text, basis="channels", progress=False),
    }
    inputs = StartInputs(teacher, plan, text, factor_std=0.1, seed=3, basis="channels")
    for name, expected in public.items():
        found = make_start(name, inputs)
        assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in found)
