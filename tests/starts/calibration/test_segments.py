"""Where a block's segments begin, for the ways in which families lay out a block."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import batch, tiny_model
from torch import Tensor

from lowrank_clone.plan.classify import make_plan
from lowrank_clone.starts.calibration.blockwise import Call, run_blockwise
from lowrank_clone.starts.calibration.norms import Norm, find_norms
from lowrank_clone.starts.calibration.segments import Event, Segment, cut_points, segments_of_blocks

WIDTH = 4


def stream() -> Tensor:
    return torch.randn(1, 3, WIDTH)


def event(kind: str, name: str, x: Tensor, y: Tensor) -> Event:
    call = Call((x,), {}, y)
    if kind == "norm":
        return Event(name, call, norm=Norm(name, f"{name}.weight", None, 0.0, False))
    names = (f"{name}.weight",)
    return Event(name, call, reads=names) if kind == "read" else Event(name, call, writes=names)


def names_at(events: Sequence[Event], cuts: Sequence[int]) -> list[str]:
    return [events[cut].module for cut in cuts]


def test_a_dense_block_is_cut_at_its_second_norm() -> None:
    s, x, s2, x2, wide = stream(), stream(), stream(), stream(), torch.randn(1, 3, 9)
    events = [
        event("norm", "input_norm", s, x),
        *(event("read", name, x, torch.randn(1, 3, 9)) for name in "qkv"),
        event("write", "o", wide, stream()),
        event("norm", "post_attention_norm", s2, x2),
        event("read", "gate", x2, torch.randn(1, 3, 9)),
        event("read", "up", x2, torch.randn(1, 3, 9)),
        event("write", "down", wide, stream()),
    ]
    assert names_at(events, cut_points(events, s)) == ["post_attention_norm"]


def test_a_parallel_block_is_not_cut() -> None:
    s, x, wide = stream(), stream(), torch.randn(1, 3, 9)
    events = [
        event("norm", "norm", s, x),
        event("read", "q", x, wide),
        event("write", "o", wide, stream()),
        event("read", "up", x.view(3, WIDTH), wide),  # a view of what the norm made
        event("write", "down", wide, stream()),
    ]
    assert cut_points(events, s) == []


def test_a_norm_behind_a_write_begins_no_segment_but_the_read_behind_it_does() -> None:
    s, s2, wide, o, down = stream(), stream(), torch.randn(1, 3, 9), stream(), stream()
    events = [
        event("read", "q", s, wide),
        event("write", "o", wide, o),
        event("norm", "post_attention_norm", o, stream()),
        event("read", "up", s2, wide),
        event("write", "down", wide, down),
        event("norm", "post_ffn_norm", down, stream()),
    ]
    assert names_at(events, cut_points(events, s)) == ["up"]


def test_two_norms_of_one_point_belong_to_one_segment() -> None:
    s, wide = stream(), torch.randn(1, 3, 9)
    events = [
        event("norm", "attention_norm", s, stream()),
        event("write", "o", wide, stream()),
        event("norm", "ffn_norm", s, stream()),
        event("write", "down", wide, stream()),
    ]
    assert cut_points(events, s) == []


def segments(family: str) -> list[list[Segment]]:
    model, ids = tiny_model(family), batch(1, 8)
    plan = make_plan(model.config, 16)
    with torch.no_grad():
        return segments_of_blocks(run_blockwise(model, ids), ids, plan, find_norms(model, plan, ids))


@pytest.mark.parametrize(
    ("family", "ends", "posts"),
    [
        ("llama", ["post_attention_layernorm", None], [None, None]),
        ("gemma2", ["pre_feedforward_layernorm", None], ["post_attention_layernorm", "post_feedforward_layernorm"]),
        ("olmo2", ["mlp.gate_proj", None], ["post_attention_layernorm", "post_feedforward_layernorm"]),
        ("mixtral", ["post_attention_layernorm", None], [None, None]),
    ],
)
def test_segments_of_families(family: str, ends: list[str | None], posts: list[str | None]) -> None:
    for index, block in enumerate(segments(family)):
        inside = f"model.layers.{index}."
        assert [segment.end and segment.end.removeprefix(inside) for segment in block] == ends
        writes = [write for segment in block for write in segment.writes]
        assert [write.post and write.post.module.removeprefix(inside) for write in writes] == posts
        assert all(segment.scales == pytest.approx((1.0,), abs=1e-4) for segment in block)


def test_cohere_adds_both_writes_to_one_point() -> None:
    for block in segments("cohere"):
        (segment,) = block
        assert [len(group.names) for group in segment.reads] == [5] and len(segment.writes) == 2
        assert segment.scales == pytest.approx((1.0, 1.0), abs=1e-4)


def test_granite_scales_its_writes() -> None:
    for block in segments("granite"):
        assert [segment.scales for segment in block] == [pytest.approx((0.7,), abs=1e-4)] * 2
