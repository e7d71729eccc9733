"""A tiny teacher, its text, a recipe, and a finished run of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import lrc
from tiny_inputs import save_teacher, write_recipe, write_text


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def recipe(teacher: Path, text: Path, tmp_path: Path) -> Path:
    return write_recipe(teacher, text, tmp_path)


@pytest.fixture(scope="session")
def finished(teacher: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    assert lrc("train", write_recipe(teacher, text, folder)) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))
