"""Relative errors of activations against a naive computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from inspected import blocks, clone_of, hooks_of, outputs
from tiny import tiny_model

from lowrank_clone.inspection.activations import relative_errors, write_projections
from lowrank_clone.model import CloneModel


def test_relative_errors_equal_a_naive_computation() -> None:
    clone, rows = clone_of(), blocks(90)  # more than one forward pass
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    assert [error.tap for error in found] == list(clone.plan.taps)
    for error in found:
        target = outputs(clone.teacher, error.tap.module, rows)
        if error.tap.kind == "write":
            target = target @ clone.factors[error.tap.name].detach()
        student = outputs(clone.student, error.tap.module, rows)
        naive = (student - target).square().sum() / target.square().sum()
        assert error.error == pytest.approx(float(naive), rel=1e-9)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0
    assert {error.place for error in found if error.tap.layer == 1} == {error.place for error in found}


def test_a_student_as_wide_as_what_its_teacher_uses_has_no_error() -> None:
    teacher = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():  # the last 8 channels are silent
        for name, parameter in teacher.named_parameters():
            if "norm" not in name and parameter.shape[-1] == 24:
                parameter[..., 16:] = 0
            elif parameter.shape[0] == 24 and parameter.ndim == 2:
                parameter[16:] = 0
    clone = CloneModel(teacher, 16)
    scale = math.sqrt(24 / 16)  # the norm takes the mean square over fewer channels
    parameters = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, role in clone.plan.roles.items():
            if role.kind == "vector":
                clone.factors[name] = parameters[name][:16] * scale
            elif role.kind != "inherited":
                clone.factors[name] = torch.eye(24, 16, dtype=torch.float64)
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, blocks())
    assert max(error.error for error in found if error.error is not None) < 1e-9  # for the norms' epsilon


@pytest.mark.parametrize("kind", ["dense", "core"])
def test_errors_do_not_depend_on_the_parameterization(kind: str) -> None:
    clone, rows = clone_of(), blocks()
    before = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    clone.reparameterize({"attention": kind, "ffn": kind})
    after = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    assert [e.error for e in after] == pytest.approx([e.error for e in before], rel=1e-9)
    assert all(value.shape == (24, 16) for value in write_projections(clone.factors, clone.plan).values())


def test_a_write_without_its_projection_is_not_compared() -> None:
    clone = clone_of(attn_out_tap="teacher", parameterization={"attention": "dense"})
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, blocks())
    unknown = {error.tap.name for error in found if error.error is None}
    assert unknown == {tap.name for tap in clone.plan.taps if tap.kind == "write" and tap.group == "attention"}


def test_outputs_that_a_family_clamps_in_place_are_compared_as_they_were_returned() -> None:
    # OLMo clamps what q, k and v returned, after their hooks have run.
    teacher = tiny_model("olmo", dtype=torch.float64, clip_qkv=0.1)
    clone, rows = CloneModel(teacher, 16, factor_std=0.2), blocks()
    found = {
        error.tap.name: error.error
        for error in relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    }

    def returned(model: Any, module: str) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        keep = model.get_submodule(module).register_forward_hook(
            lambda m, args, out: seen.append(out.clone().flatten(0, -2))
        )
        with torch.no_grad():
            model(torch.tensor([row["input_ids"] for row in rows]))
        keep.remove()
        return torch.cat(seen)

    for name in ("q_proj", "k_proj", "v_proj"):
        module = f"model.layers.0.self_attn.{name}"
        target, student = returned(clone.teacher, module), returned(clone.student, module)
        assert target.abs().max() > 0.1
        assert found[f"{module}.weight"] == pytest.approx(
            float((student - target).square().sum() / target.square().sum())
        )
