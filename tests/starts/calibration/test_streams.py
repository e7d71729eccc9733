"""Streams in files: what is put in comes out, and a disk without room is refused."""

from __future__ import annotations

import pytest
import torch

from lowrank_clone.errors import InputError
from lowrank_clone.starts.calibration.streams import Spool, Streams, check_space


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_spool_keeps_what_is_put_in(dtype: torch.dtype) -> None:
    ids = [torch.zeros(2, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long)]
    values = {3: torch.randn(2, 3, 4, dtype=dtype), 5: torch.randn(1, 5, 4, dtype=dtype)}
    spool = Spool(ids)
    spool.fill(lambda row: torch.zeros_like(values[row.shape[1]]))
    spool.fill(lambda row: values[row.shape[1]])
    for row, stream in spool:
        assert torch.equal(stream, values[row.shape[1]])
        stream.add_(1)  # a copy
    assert all(torch.equal(stream, values[row.shape[1]]) for row, stream in spool)
    spool.advance(lambda row, stream: stream * 2)
    assert all(torch.equal(stream, values[row.shape[1]] * 2) for row, stream in spool)


def test_streams_of_both_models_come_together() -> None:
    ids = [torch.full((1, 2), i) for i in range(3)]
    streams = Streams(Spool(ids), Spool(ids))
    streams.teacher.fill(lambda row: row.float()[..., None])
    streams.student.fill(lambda row: -row.float()[..., None])
    for i, (row, teacher, student) in enumerate(streams):
        assert torch.equal(row, ids[i]) and float(teacher[0, 0]) == i and float(student[0, 0]) == -i


def test_more_than_the_disk_holds_is_refused() -> None:
    check_space(1)
    with pytest.raises(InputError, match=r"need 1,000,000,000.0 GB in `.*free; set TMPDIR"):
        check_space(10**18)
