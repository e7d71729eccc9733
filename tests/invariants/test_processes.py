"""Several processes are one: every log and every factor, under each engine, with uneven last batches.

Each engine is started once, for several cases (`processes.py`); every case also goes on from its first checkpoint.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from oracles import relative_error
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from lowrank_clone import CloneModel

SCRIPT = Path(processes.__file__)


def start(folder: Path, world: int, fsdp2: bool, words: list[str]) -> list[subprocess.Popen[str]]:
    """The script once for each rank, as torchrun starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    engine = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if fsdp2 else {}
    fixed = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *words],
            env={**os.environ, **fixed, **engine, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


ALL = tuple(processes.CASES)
# How many processes, whether under FSDP2, whether the teacher is sharded, and which cases.
ENGINES: dict[str, tuple[int, bool, str, tuple[str, ...]]] = {
    "ddp 2": (2, False, "none", ALL),
    "fsdp2 2": (2, True, "none", ("accumulated", "muon", "switched")),
    "fsdp2 2, teacher too": (2, True, "fsdp", ("epochs", "stream", "switched muon")),
    "ddp 4": (4, False, "none", ("order", "normalised")),
    "fsdp2 4, teacher too": (4, True, "fsdp", ("epochs",)),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one process."""
    return processes.results(1, tmp_path_factory.mktemp("one"), ALL)


@pytest.fixture(scope="module", params=ENGINES)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Path]:
    """An engine, the results of its processes, what each of them printed, and their folder."""
    world, fsdp2, sharding, cases = ENGINES[request.param]
    folder = tmp_path_factory.mktemp("several")
    running = start(folder, world, fsdp2, [sharding, *cases])
    printed = [process.communicate(timeout=300) for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(error[-3000:] for _, error in printed)
    return request.param, torch.load(folder / "results.pt", weights_only=False), [out for out, _ in printed], folder


def test_several_processes_are_one(one: Any, several: Any) -> None:
    for case, found in several[1].items():
        compare(case, found, one[case])


def compare(case: str, several: dict[str, Any], one: dict[str, Any]) -> None:
    """Logs, with the hash over the rows that were read, and factors."""
    assert len(one["logs"]) == len(several["logs"]) > 2
    for ours, theirs in zip(several["logs"], one["logs"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # The KL at T = 40 is a small difference of large numbers.
            is_kl = name == "kl" or name.endswith("_kl")
            tolerance = 1e-5 if "switched" in case else 1e-3 if is_kl else 3e-5
            expected = value if isinstance(value, str) else pytest.approx(value, rel=tolerance)
            assert ours[name] == expected, (case, name, theirs["step"])
    for name, value in one["factors"].items():
        assert relative_error(several["factors"][name], value) < 1e-5, (case, name)
    if one["squares"] is not None:
        assert relative_error(several["squares"], one["squares"]) < 1e-5, case


def test_four_processes_read_the_same_rows_in_the_same_order(several: Any) -> None:
    """Two of them have nothing new in the last batch of an epoch."""
    if "order" in several[1]:
        hashes = [log["data_hash"] for log in several[1]["order"]["logs"] if "loss" in log]
        assert len(set(hashes)) == 7


def test_lines_are_printed_once_and_tell_how_many_processes_there_are(several: Any) -> None:
    engine, _, (first, *others), _ = several
    name, world = engine.split(",")[0].split()
    assert f"{world} processes ({name.upper()}" in first and re.search(r"step +\d+/", first)
    assert not any(others)


def test_the_student_is_saved_whole(several: Any) -> None:
    """As a plain checkpoint, whose weights are those that the factors generate."""
    engine, found, _, folder = several
    case = next(name for name in ENGINES[engine][3] if "switched" not in name)
    student = AutoModelForCausalLM.from_pretrained(folder / case / "student")
    clone = CloneModel(tiny_model("llama"), 16, **processes.CASES[case][0])
    clone.factors.load(found[case]["factors"])
    for name, weight in clone.student.named_parameters():
        torch.testing.assert_close(student.get_parameter(name), weight, msg=name)
