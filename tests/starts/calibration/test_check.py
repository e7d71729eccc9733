"""Text and teachers that a start can make nothing sound of are refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import VOCAB, batch, tiny_model
from torch import Tensor

from lowrank_clone import InputError, calibrated_start, channels_start, make_plan
from lowrank_clone.starts.calibration.check import check_result, check_variety


def calibrated(teacher: Any, text: list[Tensor]) -> dict[str, Tensor]:
    return calibrated_start(teacher, make_plan(teacher.config, 16), text, progress=False)


def channels(teacher: Any, text: list[Tensor]) -> dict[str, Tensor]:
    return channels_start(teacher, make_plan(teacher.config, 16), text)


@pytest.mark.parametrize("start", [calibrated, channels])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_damaged_teacher_is_refused_by_the_name_of_its_parameter(start: Any, name: str, bad: float) -> None:
    teacher = tiny_model("llama")
    with torch.no_grad():
        teacher.get_parameter(name).view(-1)[-1] = bad
    with pytest.raises(InputError, match=rf"teacher parameter `{name}`: got numbers that are not finite"):
        start(teacher, [batch(8, 32)])


@pytest.mark.parametrize("start", [calibrated, channels])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "got no sequences"),
        ([batch(1, 64)[0]], r"got shape \[64\], expected \[batch, length\]"),
        ([batch(8, 32) + 90], rf"below the vocabulary's size {VOCAB}"),
        ([batch(8, 32).float()], r"got torch\.float32, expected whole numbers"),
    ],
    ids=["nothing", "one row", "other tokenizer", "floats"],
)
def test_text_that_is_none_is_refused(start: Any, text: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(tiny_model("llama"), text)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_one_token_repeated_is_refused_by_regressions_and_finite_in_channels(family: str) -> None:
    teacher, text = tiny_model(family), [torch.full((4, 32), 7)]
    with pytest.raises(InputError, match="the text repeats itself, so give other text"):
        calibrated(teacher, text)
    assert all(value.isfinite().all() for value in channels(teacher, text).values())


def test_sequences_of_unequal_length_serve() -> None:
    assert all(v.isfinite().all() for v in calibrated(tiny_model("llama"), [batch(2, 32), batch(3, 7)]).values())


def test_variety_counts_directions() -> None:
    rows = torch.randn(100, 5).double() @ torch.randn(5, 12).double()
    check_variety(rows.T @ rows, 5)
    with pytest.raises(InputError, match="takes 5 directions on it, needed at least the student's width 6"):
        check_variety(rows.T @ rows, 6)


def test_a_result_that_is_not_finite_is_refused() -> None:
    teacher = tiny_model("llama", dtype=torch.float16)
    with pytest.raises(InputError, match=r"found for `b` is not finite.*float16"):
        check_result({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}, teacher)
