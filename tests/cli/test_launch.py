"""`lrc train --launch`: what it starts, and that exit codes and signals of what it started are its own."""

from __future__ import annotations

import signal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands import launch as accelerates
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lowrank_clone.cli.launch import launch
from lowrank_clone.cli.main import main
from lowrank_clone.cli.parser import parse

COMMAND = [
    "train",
    "recipe.yaml",
    "training.max_steps=3",
    "--resume",
    "auto",
    "--allow",
    "data",
    "--launch",
    "fsdp2",
    "--processes",
    "3",
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Notes what accelerate is asked to start, and raises `error` in its place where there is one."""
    noted: dict[str, Any] = {"error": None}

    def launch_command(args: Any) -> None:
        noted["args"] = args
        if noted["error"] is not None:
            raise noted["error"]

    monkeypatch.setattr(accelerates, "launch_command", launch_command)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    return noted


def test_the_same_command_runs_in_every_process(started: dict[str, Any]) -> None:
    assert launch(parse(COMMAND)) == 0
    args = started["args"]
    assert args.num_processes == 3 and args.module and args.training_script == "lowrank_clone"
    assert args.training_script_args == [
        "train",
        "recipe.yaml",
        "training.max_steps=3",
        "--resume=auto",
        "--allow=data",
    ]
    assert Path(args.config_file).name == "fsdp2.yaml"


@pytest.mark.parametrize(("exit_code", "expected"), [(2, 2), (143, 143), (-signal.SIGKILL, 137)])
def test_the_exit_code_is_that_of_the_process_that_failed(
    exit_code: int, expected: int, started: dict[str, Any]
) -> None:
    started["error"] = ChildFailedError("lrc", {1: ProcessFailure(1, 4321, exit_code, "")})
    assert launch(parse(COMMAND)) == expected


def test_a_signal_is_the_exit_code(started: dict[str, Any]) -> None:
    started["error"] = SignalException("stopped", signal.SIGTERM)
    assert launch(parse(COMMAND)) == 143


def test_the_number_of_processes_is_said_or_that_of_the_accelerators(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 5)
    launch(parse(COMMAND[:-2]))
    assert started["args"].num_processes == 5
    for words, said in (
        (["--processes", "2"], "--processes: got 2 without --launch"),
        (["--launch", "ddp", "--processes", "0"], "--processes: got 0, expected a whole number of 1 or more"),
        (["--launch", "zero2"], "invalid choice: 'zero2'"),
    ):
        assert main(["train", "lrc-1.5b", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_configs_that_ship_are_accelerate_s() -> None:
    kinds = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP}
    folder = files("lowrank_clone.recipe") / "accelerate"
    for name, kind in kinds.items():
        config = load_config_from_file(str(folder / f"{name}.yaml"))
        assert config.distributed_type == kind and config.mixed_precision == "no"
