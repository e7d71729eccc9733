"""Nothing of the user's is lost: what `--overwrite` replaces, when, and what it refuses to touch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import contents, lrc, refused

from lowrank_clone.errors import InputError
from lowrank_clone.run import manifest
from lowrank_clone.run.disk import disk_errors
from lowrank_clone.run.folder import take_place
from lowrank_clone.run.output_folder import NEW, check_apart, check_folder
from lowrank_clone.training import checkpoint


def test_a_run_is_replaced_and_what_is_the_user_s_stays(recipe: Path, run: Path) -> None:
    mine = [
        "notes.txt",
        "scratch/a.txt",
        "inspect/b.txt",
        "checkpoint-notes/c.txt",
        "student/mine.md",
        "checkpoint-2/note",
        "runs/events",
    ]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    first = (run / "student" / "model.safetensors").read_bytes()
    assert lrc("train", recipe, "--overwrite", "training.max_steps=3", "training.save_total_limit=1") == 0
    assert all((run / name).read_text() == "mine" for name in mine)
    assert (run / "student" / "model.safetensors").read_bytes() != first
    assert not (run / "checkpoint-2" / "factors.safetensors").exists() and not (run / NEW).exists()
    assert manifest.changed_files(run) == []
    theirs = contents(run).keys() - {str(path.relative_to(run)) for path in manifest.our_files(run)}
    assert theirs == set(mine)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 3


FAILURES: dict[str, Any] = {
    "text": "data.sources.0.path=/nowhere.txt",
    "scheduler": "training.lr_scheduler_type=cosine_with_min_lr",
    "optimiser": "training.optim=galore_adamw",
}


@pytest.mark.parametrize("override", FAILURES.values(), ids=FAILURES)
def test_an_option_that_fails_leaves_the_old_run(recipe: Path, run: Path, override: str) -> None:
    before = contents(run)
    with contextlib.suppress(Exception):  # that it is one line is for the tests of the options
        assert lrc("train", recipe, "--overwrite", override) != 0
    assert contents(run) == before


@pytest.mark.parametrize("place", ["begin", "data", "teacher", "step", "checkpoint", "optimizer"])
def test_a_full_disk_leaves_the_old_run(recipe: Path, run: Path, place: str, capsys, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {
        "begin": "lowrank_clone.run.manifest.os.replace",
        "data": "lowrank_clone.run.execute.prepare",
        "teacher": "lowrank_clone.run.execute.dump_results",
        "step": "lowrank_clone.training.metrics.MetricsFile.on_log",
        "checkpoint": "lowrank_clone.training.checkpoint.save_file",
        "optimizer": "torch.save",
    }
    before = contents(run)
    monkeypatch.setattr(where[place], full)
    assert "No space left on device" in refused(capsys, "train", recipe, "--overwrite", "data.seed=3")
    monkeypatch.undo()
    assert contents(run) == before


def test_a_new_run_that_fails_leaves_no_folder(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    refused(capsys, "train", recipe, f"training.output_dir={tmp_path / 'a' / 'b'}")
    assert not (tmp_path / "a").exists()


def test_a_file_that_was_changed_is_not_replaced(recipe: Path, run: Path, capsys) -> None:
    card = run / "student" / "README.md"
    card.write_text("my own words")
    before = contents(run)
    assert f"`{card}` was changed since" in refused(capsys, "train", recipe, "--overwrite")
    assert contents(run) == before
    assert lrc("train", recipe, "--resume", "training.max_steps=3") == 0
    assert (run / "student" / "README.md.changed").read_text() == "my own words"


@pytest.mark.parametrize("name", ["student", "recipe.yaml", "curves.png", "checkpoint-7", "versions.json"])
@pytest.mark.parametrize("kind", ["theirs", "link"])
def test_what_would_be_written_over_is_refused(
    recipe: Path, run: Path, tmp_path: Path, name: str, kind: str, capsys
) -> None:
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).unlink(missing_ok=True)
    other = tmp_path / "other"
    if kind == "link":
        other.mkdir()
        (other / "model.safetensors").write_text("mine")
        (run / name).symlink_to(other)
    elif "." in name:
        (run / name).write_text("mine: 1")
    else:
        (run / name).mkdir()
        (run / name / "model.safetensors").write_text("mine")
    before = contents(run), contents(other)
    message = refused(capsys, "train", recipe, "--overwrite", "--dry-run")
    assert str(run / name) in message and "move it elsewhere" in message
    assert lrc("train", recipe, "--overwrite") == 2
    assert (contents(run), contents(other)) == before


def test_a_manifest_can_t_point_outside(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (run / "linked").symlink_to(tmp_path)
    tree = json.loads((run / "manifest.json").read_text())
    state = {"size": 4}
    tree["files"] |= {"../outside.txt": state, str(outside): state, "linked/outside.txt": state, "nul\0": state}
    (run / "manifest.json").write_text(json.dumps(tree))
    assert not {path.resolve() for path in manifest.our_files(run)} & {outside.resolve()}


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"files": {"notes.txt": {"size": 4}}}', '{"writer": "lowrank-clone"}']
)
def test_a_manifest_that_is_none_of_ours_gives_nothing_away(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "notes.txt").write_text("mine")
    assert manifest.our_files(tmp_path) == []
    with pytest.raises(InputError, match="holds no run that could be replaced"):
        check_folder(tmp_path, resume=False, overwrite=True)


def test_a_run_of_before_there_were_manifests_is_replaced(recipe: Path, run: Path) -> None:
    for name in ("manifest.json", "results.json"):
        (run / name).unlink()
    (run / "student" / "mine.md").write_text("mine")
    assert lrc("train", recipe, "--overwrite", "training.save_steps=3", "training.max_steps=3") == 0
    assert not (run / "checkpoint-2").exists() and (run / "student" / "mine.md").read_text() == "mine"


def test_places_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home" / "me", tmp_path / "work" / "project"
    for folder in (home, here, tmp_path / "repository" / ".git"):
        folder.mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "to-home").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    places = {
        "/": "the root",
        ".": "the current folder",
        "..": "the current folder",
        "": "the current folder",
        str(home): "the home folder",
        str(home.parent): "the home folder",
        str(tmp_path / "to-home"): "the home folder",
        str(tmp_path / "repository"): "a git repository",
        str(tmp_path / "file"): "is a file",
        str(tmp_path / "file" / "below"): "lies below the file",
        str(tmp_path / "dangling"): "is a file",
        str(tmp_path / ("n" * 300)): "File name too long",
        str(tmp_path / "/".join(["n" * 200] * 20)): "too long",
    }
    for place, message in places.items():
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message) as caught:
                check_folder(Path(place), resume=False, overwrite=overwrite)
            assert len(str(caught.value)) < 700
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="can't be written to"):
        check_folder(tmp_path / "new" / "run", resume=False, overwrite=False)


def test_inputs_and_output_stay_apart(
    recipe: Path, run: Path, teacher: Path, text: Path, tmp_path: Path, capsys
) -> None:
    inside = {"teacher.model": shutil.copytree(teacher, run / "teacher"), "data.sources.0": run / "mine.jsonl"}
    lines = [json.dumps({"text": f"Line {i} of my own. " * 20}) for i in range(9)]
    (run / "mine.jsonl").write_text("\n".join(lines))
    before = contents(run)
    for key, path in inside.items():
        override = f"{key}={path}" if key == "teacher.model" else f"{key}.path={path}"
        assert f"{key}: `{path}` lies inside" in refused(capsys, "train", recipe, override, "--overwrite")
    link = tmp_path / "link.jsonl"
    link.symlink_to(run / "mine.jsonl")
    assert "lies inside" in refused(capsys, "train", recipe, f"data.sources.0.path={link}", "--overwrite")
    start = f"method.start_from={run}"
    assert "method.start_from: " in refused(capsys, "train", recipe, start, "--overwrite")
    assert contents(run) == before
    output = f"training.output_dir={text / 'run'}"
    assert "lies inside data.sources.0" in refused(capsys, "train", recipe, output)
    with pytest.raises(InputError, match=r"lies inside data\.sources\.0"):
        check_apart(tmp_path / "x" / "y", {"data.sources.0": tmp_path})
    # What a run writes below a teacher or another run is read by neither.
    check_apart(tmp_path / "x" / "y", {"teacher.model": tmp_path, "method.start_from": tmp_path})


def test_flags_never_send_in_a_circle(recipe: Path, run: Path, tmp_path: Path, capsys) -> None:
    """What a message advises is not what it was given, and works."""
    assert "give --resume to go on, --overwrite to replace" in refused(capsys, "train", recipe)
    shutil.rmtree(run / "checkpoint-2")
    message = refused(capsys, "train", recipe)
    assert "--overwrite" in message and "--resume" not in message
    message = refused(capsys, "train", recipe, "--resume")
    assert "give --overwrite in place of --resume" in message
    assert lrc("train", recipe, "--overwrite") == 0
    empty = f"training.output_dir={tmp_path / 'none'}"
    assert "leave it out" in refused(capsys, "train", recipe, empty, "--resume")
    assert lrc("train", recipe, empty) == 0
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    for flags in ((), ("--resume",), ("--overwrite",)):
        message = refused(capsys, "train", recipe, f"training.output_dir={strange}", *flags)
        assert "another training.output_dir" in message


def test_a_replacement_that_was_cut_off_is_completed(recipe: Path, run: Path, tmp_path: Path) -> None:
    """As if the machine had gone down while the new run took the old one's place."""
    other = tmp_path / "other"
    assert lrc("train", recipe, f"training.output_dir={other}", "training.max_steps=4", "training.save_steps=4") == 0
    for cut in (0, 3, 8):
        folder = Path(shutil.copytree(run, tmp_path / f"cut-{cut}"))
        shutil.copytree(other, folder / NEW)
        manifest.remove(manifest.our_files(folder)[:cut], folder)
        take_place(folder)
        assert contents(folder) == contents(other)


def test_an_interrupted_replacement_is_resumed_in_place_of_the_old_run(
    recipe: Path, run: Path, capsys, monkeypatch
) -> None:
    """Its start is saved before the first step; until it has trained, the old run stays."""
    before = contents(run)
    from lowrank_clone.training.trainer import CloneTrainer

    step = CloneTrainer.training_step

    def stop(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CloneTrainer, "training_step", stop)
    calibrated = ("method.init=channels", "method.calibration.tokens=128", "training.max_steps=3")
    assert lrc("train", recipe, "--overwrite", *calibrated) == 130
    message = capsys.readouterr().err
    assert "checkpoint-0 is saved" in message and "is as it was" in message
    assert {name: digest for name, digest in contents(run).items() if not name.startswith(NEW)} == before
    monkeypatch.setattr(CloneTrainer, "training_step", step)
    assert lrc("train", recipe, "--resume", *calibrated) == 0
    assert not (run / NEW).exists() and (run / "checkpoint-3").is_dir()
    assert "init: channels" in (run / "recipe.yaml").read_text()


def test_old_checkpoints_go_by_number_and_never_another_folder(recipe: Path, run: Path) -> None:
    (run / "checkpoint-notes").mkdir()
    (run / "checkpoint-notes" / "a.txt").write_text("mine")
    (run / "checkpoint-1").mkdir()
    (run / "checkpoint-1" / "model.safetensors").write_text("mine")
    limits = ("training.max_steps=6", "training.save_total_limit=2")
    assert lrc("train", recipe, "--resume", *limits) == 0
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-4", "checkpoint-6", "checkpoint-notes"]
    assert torch.load(run / "checkpoint-6" / "scheduler.pt", weights_only=True)["last_epoch"] == 6


def test_a_second_error_does_not_hide_a_full_disk() -> None:
    """As when a library fails once more while it closes its files."""

    def closing() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/cache/a.arrow")
        finally:
            raise ValueError("I/O operation on closed file")

    message = r"^data: `/cache/a.arrow` No space left on device; make room$"
    with pytest.raises(InputError, match=message), disk_errors("data", "make room"):
        closing()
    with pytest.raises(KeyError), disk_errors("data"):
        raise KeyError("another mistake")


def test_a_loss_that_is_no_number_costs_neither_run(recipe: Path, run: Path, capsys, monkeypatch) -> None:
    """The state before it is saved where the message says, and the old run is still there; `--resume` takes it up."""
    before = contents(run)
    options = ("training.max_steps=4", "training.save_steps=4")
    norms = iter([1.0, float("nan")])
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
        assert lrc("train", recipe, "--overwrite", *options, "training.on_spike=stop") == 1
    saved = run / NEW / "checkpoint-1"
    assert f"The state before this step is in {saved}" in capsys.readouterr().err and saved.is_dir()
    assert {name: digest for name, digest in contents(run).items() if not name.startswith(NEW)} == before
    assert lrc("train", recipe, "--resume", "training.max_steps=4", "training.save_steps=4") == 0
    assert not (run / NEW).exists() and (run / "checkpoint-4").is_dir() and not (run / "checkpoint-2").exists()


@pytest.mark.parametrize("kind", ["theirs", "link"])
def test_a_resumed_run_writes_over_nothing_of_the_user_s(
    recipe: Path, run: Path, tmp_path: Path, kind: str, capsys
) -> None:
    """As when a run ended before its export, and somebody put a folder of that name there."""
    student, other = run / "student", tmp_path / "other"
    shutil.rmtree(student)
    if kind == "link":
        other.mkdir()
        student.symlink_to(other)
    else:
        student.mkdir()
    (student / "weights.bin").write_text("mine")
    before = contents(run)
    assert f"`{student}` " in refused(capsys, "train", recipe, "--resume", "training.max_steps=3")
    assert contents(run) == before


def test_a_recipe_that_was_edited_in_the_run_s_folder_is_kept(run: Path) -> None:
    file = run / "recipe.yaml"
    text = "# my remark\n" + file.read_text().replace("max_steps: 2", "max_steps: 3").replace(f"{file.parent}", "x")
    edited = text.replace(text[text.index("output_dir: ") :].splitlines()[0], f"output_dir: {run}")
    file.write_text(edited)
    assert lrc("train", file, "--resume") == 0
    assert (run / "recipe.yaml.changed").read_text() == edited and "max_steps: 3" in file.read_text()


def test_paths_that_can_t_be_are_one_line(run: Path, tmp_path: Path, capsys) -> None:
    long = "n" * 300
    assert "File name too long" in refused(capsys, "inspect", tmp_path / long)
    assert "File name too long" in refused(capsys, "export", tmp_path / long, tmp_path / "out")
    assert "File name too long" in refused(capsys, "export", run, tmp_path / long)
    assert "lies below the file" in refused(capsys, "export", run, run / "metrics.jsonl" / "out")
