"""Masked neurons against zeroed columns."""

from __future__ import annotations

import copy

import pytest
import torch
from inspected import blocks, clone_of, hooks_of

from lowrank_clone.inspection.neurons import mask_test, masked
from lowrank_clone.objective.evaluate import language_loss


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "starcoder2"])
def test_masking_equals_zeroed_columns(family: str) -> None:
    clone, rows = clone_of(family), blocks()
    test = mask_test(clone.teacher, clone.student, clone.plan, rows, top=7, seeds=(0, 1))
    assert test is not None
    assert (test.candidates, test.tokens, len(test.teacher.random)) == (80, 33, 2)
    taps = {tap.name: tap for tap in clone.plan.taps if tap.kind == "write" and tap.group == "ffn"}
    activity = {}
    for name, tap in taps.items():
        seen: list[torch.Tensor] = []
        hook = clone.teacher.get_submodule(tap.module).register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append(args[0].flatten(0, -2))
        )
        clone.teacher(torch.tensor([row["input_ids"] for row in rows]))
        hook.remove()
        activity |= {(name, i): float(a) for i, a in enumerate(torch.cat(seen).abs().mean(0))}
    assert set(test.neurons) == set(sorted(activity, key=lambda neuron: -activity[neuron])[:7])
    for model, losses in ((clone.teacher, test.teacher), (clone.student, test.student)):
        assert losses.plain == language_loss(model, rows).loss
        cut = copy.deepcopy(model)
        for name, index in test.neurons:
            cut.get_submodule(taps[name].module).weight[:, index] = 0
        assert losses.top == pytest.approx(language_loss(cut, rows).loss, rel=1e-12)
        assert losses.top != pytest.approx(losses.plain, rel=1e-6)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0


def test_masking_nothing_changes_nothing_and_no_more_than_half_is_masked() -> None:
    clone, rows = clone_of(), blocks()
    with masked(clone.student, {}, []):
        assert language_loss(clone.student, rows).loss == language_loss(clone.student, rows).loss
    test = mask_test(clone.teacher, clone.student, clone.plan, rows, top=1000, seeds=())
    assert test is not None
    assert len(test.neurons) == 40
