"""Several processes are one: every log and every factor, with uneven last batches, whatever the accumulation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from oracles import relative_error

SCRIPT = Path(processes.__file__)


def start(folder: Path, world: int, *cases: str) -> list[subprocess.Popen[str]]:
    """The script once for each rank, as torchrun starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    fixed = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *cases],
            env={**os.environ, **fixed, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Results of one process and of two, and what each of the two printed."""
    folder = tmp_path_factory.mktemp("two")
    running = start(folder, 2)
    one = processes.results(1, tmp_path_factory.mktemp("one"))
    printed = [process.communicate(timeout=300) for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(error[-3000:] for _, error in printed)
    return one, torch.load(folder / "results.pt", weights_only=False), [output for output, _ in printed]


@pytest.mark.parametrize("case", processes.CASES)
def test_two_processes_are_one(case: str, both: Any) -> None:
    compare(both[1][case], both[0][case])


def test_four_processes_read_the_same_rows_in_the_same_order(both: Any, tmp_path: Path) -> None:
    """Two of them have nothing new in the last batch of an epoch."""
    running = start(tmp_path, 4, "order")
    printed = [process.communicate(timeout=300) for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(error[-3000:] for _, error in printed)
    four = torch.load(tmp_path / "results.pt", weights_only=False)["order"]
    compare(four, both[0]["order"])
    hashes = [log["data_hash"] for log in four["logs"] if "loss" in log]
    assert len(set(hashes)) == 7


def compare(two: dict[str, Any], one: dict[str, Any]) -> None:
    """Logs, with the hash over the rows that were read, and factors."""
    assert len(one["logs"]) == len(two["logs"]) > 2
    for ours, theirs in zip(two["logs"], one["logs"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # The KL at T = 40 is a small difference of large numbers.
            tolerance = 1e-3 if name == "kl" or name.endswith("_kl") else 3e-5
            expected = value if isinstance(value, str) else pytest.approx(value, rel=tolerance)
            assert ours[name] == expected, (name, theirs["step"])
    for name, value in one["factors"].items():
        assert relative_error(two["factors"][name], value) < 1e-5, name
    if one["squares"] is not None:
        assert relative_error(two["squares"], one["squares"]) < 1e-5


def test_lines_are_printed_once_and_tell_how_many_processes_there_are(both: Any) -> None:
    first, second = both[2]
    assert "2 processes" in first and "step 1/" in first
    assert not second
