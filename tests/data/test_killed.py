"""Killed with -9 at any moment and started again, making shards ends with the same bytes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lowrank_clone

TESTS = Path(__file__).parents[1]


@pytest.fixture
def corpus(folder: Path) -> Path:
    """1.2 MB in 60 parts of 20,000 bytes."""
    for name in ("a", "b", "c"):
        rows = [json.dumps({"text": f"{name}{i} " + "some words " * (i % 60)}) for i in range(1200)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def kill_and_compare(corpus: Path, tmp_path: Path, kills: int, workers: int) -> int:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(Path(lowrank_clone.__file__).parents[1])])
    }
    command = [sys.executable, TESTS / "kill_shards.py", corpus, tmp_path / "shards", str(kills), str(workers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    folders = [next((tmp_path / name).iterdir()) for name in ("shards", "shards-whole")]
    killed, whole = ({p.name: p.read_bytes() for p in f.iterdir() if p.name != ".lock"} for f in folders)
    assert len(whole) > 200 and killed == whole
    return int(done.stdout)


def test_three_kills(corpus: Path, tmp_path: Path) -> None:
    assert kill_and_compare(corpus, tmp_path, 3, 1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills(corpus: Path, tmp_path: Path, workers: int) -> None:
    assert kill_and_compare(corpus, tmp_path, 10, workers) >= 3
    time.sleep(3)
    assert str(tmp_path) not in subprocess.run(["ps", "-ef"], capture_output=True, text=True).stdout  # nobody goes on
