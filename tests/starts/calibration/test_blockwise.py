"""Blocks run one at a time as in the whole model, or not at all."""

from __future__ import annotations

import pytest
import torch
from oracles import hooks
from tiny import batch, tiny_model

from lowrank_clone.errors import InputError
from lowrank_clone.starts.calibration.blockwise import run_blockwise


def test_blocks_one_at_a_time_agree_with_a_whole_pass() -> None:
    model, ids = tiny_model("gemma2"), batch()
    runner = run_blockwise(model, ids)
    with torch.no_grad():
        stream = runner.first_stream(ids)
        for index in range(len(runner)):
            stream = runner.next_stream(index, ids, stream)
        caught = []
        handle = model.lm_head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        model(ids)
        handle.remove()
        assert torch.equal(runner.head_input(ids, stream), caught[0])


def test_a_block_that_fails_is_restored() -> None:
    model, ids = tiny_model("llama"), batch()
    runner = run_blockwise(model, ids)
    stream = runner.first_stream(ids)
    with pytest.raises(RuntimeError):
        runner.block(1, ids, stream[..., :-1])
    assert hooks(model) == 0 and not any("forward" in block.__dict__ for block in model.model.layers)


def test_blocks_that_are_no_chain_are_refused() -> None:
    model, ids = tiny_model("llama"), batch()
    blocks = model.model.layers
    blocks[1].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    with pytest.raises(InputError, match="can't be run one at a time"):
        run_blockwise(model, ids)
