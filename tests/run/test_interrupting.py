"""Ctrl-C and SIGTERM at every moment of a run: one line, nothing lost, and `--resume` goes on to the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import contents, lrc
from safetensors.torch import load_file

from lowrank_clone.inspection import figures
from lowrank_clone.run import build_clone, execute, manifest
from lowrank_clone.training import trainer
from lowrank_clone.training.last_checkpoint import last_checkpoint
from lowrank_clone.training.trainer import CloneTrainer

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGHUP: 129}


def signals_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1, signum: int = signal.SIGINT, times: int = 1
) -> None:
    """Let this process get a signal when a function is called for the `call`-th time."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = []

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("lrc: ")]
    return line


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    recipe: Path, tmp_path: Path, capsys, monkeypatch, signum: int
) -> None:
    six = ("training.max_steps=6", "training.save_steps=100", "method.clone_normalization=target")
    before = signal.getsignal(signum)
    whole = tmp_path / "whole"
    assert lrc("train", recipe, *six, f"training.output_dir={whole}") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        signals_at(patch, CloneTrainer, "training_step", call=3, signum=signum)
        assert lrc("train", recipe, *six) == CODES[signum]
    line = said(capsys)
    run = tmp_path / "run"
    assert "after step 3 of 6" in line and f"{run / 'checkpoint-3'} is saved" in line and "--resume" in line
    assert not (run / "student").exists()
    assert lrc("train", recipe, *six, "--resume") == 0
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (whole, run))
    assert all(first[name].equal(second[name]) for name in first)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"lm"' in line]
        for folder in (whole, run)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("place", ["prepare", "measure_data", "make_clone", "language_loss"])
@pytest.mark.parametrize("signum", CODES)
def test_before_the_first_step_nothing_is_left(
    recipe: Path, tmp_path: Path, capsys, monkeypatch, place: str, signum: int
) -> None:
    signals_at(monkeypatch, execute, place, signum=signum)
    assert lrc("train", recipe) == CODES[signum]
    assert "nothing was saved" in said(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["prepare", "make_clone"])
def test_before_the_first_step_a_run_to_resume_or_to_replace_is_as_it_was(
    recipe: Path, run: Path, capsys, monkeypatch, place: str
) -> None:
    before = contents(run)
    for flag in ("--resume", "--overwrite"):
        with monkeypatch.context() as patch:
            signals_at(patch, execute, place)
            assert lrc("train", recipe, "training.max_steps=3", flag) == 130
        line = said(capsys)
        assert ("--resume goes on" if flag == "--resume" else "is as it was") in line
        assert contents(run) == before


def test_a_long_start_is_computed_once(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    options = ("method.init=channels", "method.calibration.tokens=128", "training.eval_on_start=true")
    with monkeypatch.context() as patch:
        signals_at(patch, trainer, "evaluate_set")  # in the evaluation before the first step
        assert lrc("train", recipe, *options) == 130
    run = tmp_path / "run"
    assert f"{run / 'checkpoint-0'} is saved" in said(capsys) and last_checkpoint(run) == run / "checkpoint-0"
    with monkeypatch.context() as patch:
        patch.setattr(build_clone, "make_start", lambda *_: pytest.fail("the start was computed again"))
        assert lrc("train", recipe, *options, "--resume") == 0
    other = tmp_path / "other"
    assert lrc("train", recipe, *options, f"training.output_dir={other}") == 0
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (run, other))
    assert all(first[name].equal(second[name]) for name in first)
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, other)]
    assert results[0] == results[1] and results[0]["student"].keys() == {"0", "2"}


def test_an_evaluation_is_not_waited_for(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    options = ("training.eval_strategy=steps", "training.eval_steps=1", "training.eval_on_start=false")
    with monkeypatch.context() as patch:
        signals_at(patch, trainer, "evaluate_set")
        assert lrc("train", recipe, *options, "training.max_steps=4", "training.save_steps=100") == 130
    assert "after step 1 of 4" in said(capsys)
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-1"
    assert lrc("train", recipe, *options, "training.max_steps=4", "training.save_steps=100", "--resume") == 0


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_what_was_not_evaluated_or_logged_before_a_signal_is_made_up(
    recipe: Path, tmp_path: Path, monkeypatch, strategy: str
) -> None:
    """The interrupted run has every evaluation of an undisturbed one, and its step counts in a mean of the log."""
    options = {
        "steps": ("training.eval_strategy=steps", "training.eval_steps=2", "training.max_steps=5", "data.repeat=true"),
        "epoch": ("training.eval_strategy=epoch", "training.num_train_epochs=2", "training.max_steps=-1"),
    }[strategy]
    options += ("training.logging_steps=3", "training.save_strategy=no", "training.per_device_train_batch_size=80")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert lrc("train", recipe, *options, f"training.output_dir={whole}") == 0
    evaluated = {
        step for line in (whole / "metrics.jsonl").read_text().splitlines() if "eval_lm" in line
        for step in [json.loads(line)["step"]]
    }  # fmt: skip
    call = {"steps": 4, "epoch": 3}[strategy]  # the last micro-batch before an evaluation
    with monkeypatch.context() as patch:
        signals_at(patch, CloneTrainer, "training_step", call=call)
        assert lrc("train", recipe, *options, f"training.output_dir={cut}") == 130
    assert last_checkpoint(cut) == cut / f"checkpoint-{call}" and call in evaluated
    assert lrc("train", recipe, *options, f"training.output_dir={cut}", "--resume") == 0
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, cut)]
    assert results[0] == results[1]
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_that_is_stopped_while_its_student_is_written_goes_on(
    recipe: Path, tmp_path: Path, finished: Path, capsys, monkeypatch, after: int
) -> None:
    """Stopped before the move of the file `after` the first: what is there is the run's, and the rest is written."""
    replace = manifest.os.replace
    moved = []

    def stop(source: Any, target: Any) -> None:
        if Path(target).parent.name == "student":
            if len(moved) == after:
                os.kill(os.getpid(), signal.SIGINT)
            moved.append(target)
        replace(source, target)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "replace", stop)
        assert lrc("train", recipe) == 130
    assert "--resume goes on" in said(capsys)
    (run / "mine.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "replace", replace)
        assert lrc("train", recipe, "--resume") == 0
    files = {path.name for path in (finished / "student").iterdir()}
    assert {path.name for path in (run / "student").iterdir()} == files
    assert (run / "student" / "model.safetensors").read_bytes() == (
        finished / "student" / "model.safetensors"
    ).read_bytes()
    assert lrc("train", recipe, "--overwrite") == 0 and manifest.changed_files(run) == []


def test_a_stopped_inspection_is_begun_again(run: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        signals_at(patch, figures, "draw_spectra")  # some figures are drawn by then
        assert lrc("inspect", run) == 130
    assert not [path for path in run.iterdir() if "inspect" in path.name]
    assert lrc("inspect", run) == 0 and (run / "inspect" / "report.html").is_file()


@pytest.mark.parametrize("place", ["training_step", "_save_checkpoint"])
def test_a_second_signal_stops_at_once_and_corrupts_nothing(
    recipe: Path, run: Path, capsys, monkeypatch, place: str
) -> None:
    longer = ("training.max_steps=6", "training.save_steps=4")
    with monkeypatch.context() as patch:
        signals_at(patch, CloneTrainer, place, call=1, times=2)
        assert lrc("train", recipe, *longer, "--resume") == 130
    assert f"{run / 'checkpoint-2'} is saved" in said(capsys)
    assert last_checkpoint(run) == run / "checkpoint-2"
    assert lrc("train", recipe, *longer, "--resume") == 0


def test_a_signal_to_a_process(recipe: Path, tmp_path: Path) -> None:
    """The one test with a process of its own: the exit code that a shell sees."""
    script = (
        "import os, signal, sys\n"
        "from lowrank_clone.training.trainer import CloneTrainer\n"
        "step = CloneTrainer.training_step\n"
        "def stop(*args, **kwargs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(*args, **kwargs)\n"
        "CloneTrainer.training_step = stop\n"
        "from lowrank_clone.cli.main import main\n"
        f"sys.exit(main(['train', {str(recipe)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 143
    assert "Traceback" not in done.stderr and (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()
