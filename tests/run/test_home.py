"""`~` is the home folder in every path of a recipe and of the command line."""

import os
from pathlib import Path

import pytest
from commands import lrc

from lowrank_clone.run.teacher_place import local_teacher


def test_home_in_every_path(
    recipe: Path, run: Path, teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, target in {"teacher": teacher, "text": text, "before": run, "recipe.yaml": recipe}.items():
        os.symlink(target, home / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    paths = ["teacher.model=~/teacher", "data.sources.0.path=~/text/*.txt", "training.output_dir=~/run"]
    assert lrc("plan", "~/recipe.yaml", *paths) == 0
    started = [*paths, "method.start_from=~/before"]
    assert lrc("train", "~/recipe.yaml", *started, "--dry-run") == 0
    assert lrc("train", "~/recipe.yaml", *started) == 0
    assert (home / "run" / "student" / "config.json").is_file()
    assert lrc("export", "~/run", "~/exported") == 0
    assert (home / "exported" / "config.json").is_file()
    assert lrc("inspect", "~/run") == 0
    assert lrc("init", "~/teacher", "~/text", "-o", "~/new.yaml") == 0
    assert (home / "new.yaml").is_file()
    (home / "child.yaml").write_text("base: ~/recipe.yaml\n")
    assert lrc("plan", "~/child.yaml", *paths) == 0
    assert not (tmp_path / "~").exists()


def test_home_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    (tmp_path / "model.gguf").touch()
    assert local_teacher("~/model.gguf") == tmp_path / "model.gguf"
