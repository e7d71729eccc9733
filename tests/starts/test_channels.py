"""Starts without regressions: random factors, and channels chosen by activations."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, batch, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from lowrank_clone.errors import InputError
from lowrank_clone.model import CloneModel
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.starts.channels import channels_start, select_channels
from lowrank_clone.starts.random import random_start

WIDTH = 16
TEXT = [batch(8, 16, seed=5), batch(12, 16, seed=6)]


def divergence(teacher: PreTrainedModel, start: dict[str, Tensor]) -> float:
    """Mean KL(teacher || student) on other text."""
    student, ids = CloneModel(teacher, WIDTH, start=start).student, batch(8, 16, seed=7)
    with torch.no_grad():
        p, q = (model(ids).logits.log_softmax(-1) for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_random_start_is_normal_and_seeded() -> None:
    plan = make_plan(tiny_model("llama").config, WIDTH)
    one, two, other = random_start(plan, 0.1, 1), random_start(plan, 0.1, 1), random_start(plan, 0.1, 2)
    assert set(one) == {role.name for role in plan.of_kind("read", "write")}
    values = torch.cat([z.flatten() for z in one.values()])
    assert abs(float(values.std()) - 0.1) < 0.005 and abs(float(values.mean())) < 0.005
    assert all(torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_channels_are_those_of_the_definition() -> None:
    """RED, arXiv 2605.29327: mean |h| over tokens, L2 over sequences, mean over points of the stream."""
    teacher = tiny_model("llama")
    streams: list[list[Tensor]] = []
    with torch.no_grad():
        for ids in TEXT:
            for row in ids:
                points = [teacher.model.embed_tokens(row[None])]
                handles = [
                    layer.register_forward_hook(lambda module, args, out, points=points: points.append(out))
                    for layer in teacher.model.layers
                ]
                teacher(row[None])
                for handle in handles:
                    handle.remove()
                streams.append(points)
    scores = []
    for channel in range(24):
        total = 0.0
        for point in range(3):
            squares = [float(points[point][0, :, channel].abs().mean()) ** 2 for points in streams]
            total += sum(squares) ** 0.5
        scores.append(total / 3)
    expected = sorted(sorted(range(24), key=lambda channel: -scores[channel])[:WIDTH])
    assert select_channels(teacher, TEXT, WIDTH).tolist() == expected

    plan = make_plan(teacher.config, WIDTH)
    start = channels_start(teacher, plan, TEXT, sequences=20)
    one_hot = torch.zeros(24, WIDTH)
    for j, channel in enumerate(expected):
        one_hot[channel, j] = 1
    for role in plan.of_kind("read", "write"):
        assert torch.equal(start[role.name], one_hot)
    for role in plan.of_kind("vector"):
        gain = teacher.get_parameter(role.name)[expected] * (24 / WIDTH) ** 0.5
        assert torch.allclose(start[role.name], gain)


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "granite", "olmo2", "qwen3_moe", "gpt_oss"])
def test_exact_where_the_other_channels_are_silent(family: str) -> None:
    """The oracle of the norms' scale: with all of the stream in `d_S` channels nothing is lost."""
    teacher = tiny_model(family)
    plan = make_plan(teacher.config, WIDTH)
    silent = torch.randperm(24)[WIDTH:]
    with torch.no_grad():
        for role in plan.roles.values():
            if role.kind in ("write", "bias") or role.group == "embedding":
                teacher.get_parameter(role.name).movedim(role.axis, 0)[silent] = 0
    start = channels_start(teacher, plan, TEXT)
    assert divergence(teacher, start) < 1e-5
    assert divergence(teacher, random_start(plan)) > 1e-2


@pytest.mark.parametrize("family", [*FAMILIES])
def test_channels_fit_every_family(family: str) -> None:
    teacher = tiny_model(family)
    plan = make_plan(teacher.config, 20)
    start = channels_start(teacher, plan, TEXT)
    shapes = {role.name: role.student_shape for role in plan.of_kind("vector")}
    shapes |= {role.name: (24, 20) for role in plan.of_kind("read", "write")}
    assert {name: tuple(value.shape) for name, value in start.items()} == shapes
    student = CloneModel(teacher, 20, start=start).student
    assert torch.isfinite(student(TEXT[0]).logits).all()


def test_fifteen_sequences_are_looked_at() -> None:
    teacher = tiny_model("llama")
    plan = make_plan(teacher.config, WIDTH)
    text = torch.cat(TEXT)
    one, two = channels_start(teacher, plan, TEXT), channels_start(teacher, plan, [text[:15]])
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_no_text_is_refused() -> None:
    teacher = tiny_model("llama")
    with pytest.raises(InputError, match="got no sequences"):
        channels_start(teacher, make_plan(teacher.config, WIDTH), [])
