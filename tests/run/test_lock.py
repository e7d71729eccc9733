"""One process at a time in a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import contents, lrc, refused
from rich.console import Console

from lowrank_clone.errors import InputError
from lowrank_clone.recipe.load import load_recipe
from lowrank_clone.run.execute import execute
from lowrank_clone.run.job import check
from lowrank_clone.run.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from lowrank_clone.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run's folder."""
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_is_gone(recipe: Path, run: Path, holder, capsys) -> None:
    before = contents(run)
    for flag in ("--resume", "--overwrite"):
        message = refused(capsys, "train", recipe, flag, "training.max_steps=3")
        assert f"`{run}` is in use by process {holder.pid} on " in message
    assert contents(run) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (run / ".lock").exists()
    assert lrc("train", recipe, "--resume", "auto", "training.max_steps=3") == 0
    assert not (run / ".lock").exists()


def test_what_a_killed_process_left_is_no_obstacle(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on another machine")
    assert lrc("train", recipe, "training.max_steps=1") == 0


def test_a_run_that_went_on_in_between_is_not_touched(recipe: Path, run: Path) -> None:
    job = check(load_recipe(str(recipe), ["training.max_steps=3"]), resume=True)
    before = contents(run)
    with pytest.raises(InputError, match="went on while this one was checked"):
        execute(replace(job, seen=(b"an earlier manifest", b"", b"")), Console(quiet=True))
    assert contents(run) == before


def test_a_lock_is_taken_and_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
        assert not list(tmp_path.iterdir())
