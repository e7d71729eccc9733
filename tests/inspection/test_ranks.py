"""Effective ranks of known covariances, and those of the stream."""

from __future__ import annotations

import math

import pytest
import torch
from inspected import blocks, clone_of, hooks_of, outputs

from lowrank_clone.inspection.ranks import effective_rank, entropy_rank, rows_ranks, stream_ranks


def test_effective_rank_of_known_covariances() -> None:
    orthogonal = torch.cat([torch.eye(5), -torch.eye(5)])  # mean zero, unit rows, covariance I / 5
    assert effective_rank(orthogonal) == pytest.approx(5)
    assert effective_rank(3 * orthogonal + torch.arange(5.0)) == pytest.approx(5)  # neither size nor place matters
    assert effective_rank(torch.outer(torch.arange(6.0), torch.ones(4))) == pytest.approx(1)
    assert effective_rank(torch.ones(6, 4)) == 0  # nothing varies
    weighted = torch.cat([orthogonal[[0, 5]].repeat(3, 1), orthogonal[[1, 6]]])  # eigenvalues 3/4 and 1/4
    assert effective_rank(weighted) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert entropy_rank(torch.tensor([2.0, 2.0, 0.0])) == pytest.approx(2)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_stream_ranks_equal_those_of_the_layers_outputs(family: str) -> None:
    clone, rows = clone_of(family), blocks(90)
    found = stream_ranks(clone.teacher, clone.student, clone.plan, rows)
    assert [rank.layer for rank in found] == [0, 1, 2]
    for model, ranks in ((clone.teacher, [r.teacher for r in found]), (clone.student, [r.student for r in found])):
        naive = [outputs(model, "model.embed_tokens", rows)]
        naive += [outputs(model, f"model.layers.{i}", rows) for i in range(2)]
        assert ranks == pytest.approx([effective_rank(stream) for stream in naive], rel=1e-5)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0


@pytest.mark.parametrize("length", [4, 40])  # fewer rows than channels, and more
def test_ranks_of_one_pass_are_those_of_a_long_measurement(length: int) -> None:
    clone, rows = clone_of(), blocks(3, length)
    models, texts = (clone.teacher, clone.student, clone.plan), [torch.tensor(row["input_ids"]) for row in rows]
    for few, many in zip(rows_ranks(*models, texts), stream_ranks(*models, rows), strict=True):
        assert few.layer == many.layer
        assert few.teacher == pytest.approx(many.teacher, rel=1e-9)
        assert few.student == pytest.approx(many.student, rel=1e-9)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0
