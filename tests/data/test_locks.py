"""Two at once, workers that are killed, and a parent that is: nobody waits forever and nothing is made twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data import make_shards as making
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.make_shards import make_shards
from lowrank_clone.data.sharding import parts
from lowrank_clone.errors import InputError


def test_the_second_of_two_waits_and_uses_what_the_first_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.txt").write_text("some text")
    config = DataConfig(sources=[{"path": str(folder)}], shards=str(tmp_path / "shards"))
    keyed = [("data.sources.0", config.sources[0])]
    begun, go_on, made = threading.Event(), threading.Event(), []
    real = making.make_shard

    def slow(*arguments: Any) -> bool:
        made.append(real(*arguments))
        begun.set()
        assert go_on.wait(60)
        return made[-1]

    monkeypatch.setattr(making, "make_shard", slow)
    monkeypatch.setattr(parts, "_DOUBT", 0)
    found = []

    def run() -> None:
        found.append(make_shards(keyed, config, tiny_tokenizer(), 258)[0].digest)

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    assert begun.wait(60)
    second.start()
    said = ""
    while "waiting for another process, which makes the shards in" not in said:
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert not found
    go_on.set()
    first.join()
    second.join()
    assert made[0] and not any(made[1:]) and found[0] == found[1]
    assert "using 1 shard of before, in" in capsys.readouterr().err


def long_work(folder: Path) -> Path:
    """Two parts that take a while each."""
    for name in "ab":
        row = json.dumps({"text": f"{name} word" * 400}) + "\n"
        (folder / f"{name}.jsonl").write_text(row * (40_000_000 // len(row)))
    return folder


def writers(shards: Path) -> set[int]:
    """The processes that have the ids of a shard open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            if any(link.startswith(str(shards)) and link.endswith(".ds") for link in links):
                found.add(int(process.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it took two minutes")


@pytest.mark.slow
def test_a_killed_worker_ends_the_run(folder: Path, tmp_path: Path) -> None:
    shards, errors = tmp_path / "shards", []
    config = DataConfig(sources=[{"path": str(long_work(folder))}], shards=str(shards))

    def run() -> None:
        try:
            make_shards([("data.sources.0", config.sources[0])], config, tiny_tokenizer(), 258, workers=2)
        except InputError as error:
            errors.append(str(error))

    running = threading.Thread(target=run)
    running.start()
    wait_for(lambda: len(writers(shards)) == 2)
    os.kill(writers(shards).pop(), signal.SIGKILL)
    running.join(60)
    assert errors and errors[0].startswith("a worker process was killed")
    wait_for(lambda: not writers(shards))


SCRIPT = """
import sys
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.make_shards import make_shards
from tiny_tokenizer import tiny_tokenizer
config = DataConfig(sources=[{"path": sys.argv[1]}], shards=sys.argv[2])
make_shards([("data.sources.0", config.sources[0])], config, tiny_tokenizer(), 258, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_workers_end_with_who_started_them(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    shards, tests = tmp_path / "shards", str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SCRIPT, str(long_work(folder)), str(shards)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        wait_for(lambda: len(writers(shards)) == 2)
        running.send_signal(number)
        assert running.wait(30) != 0
        wait_for(lambda: not writers(shards))
