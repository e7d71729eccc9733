"""A tiny teacher, its text, a recipe, and a finished run of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import lrc
from tiny_inputs import save_teacher, write_text


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def recipe(teacher: Path, text: Path, tmp_path: Path) -> Path:
    return write_recipe(teacher, text, tmp_path)


def write_recipe(teacher: Path, text: Path, folder: Path) -> Path:
    tree: dict[str, Any] = {
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "student": {"hidden_size": 16, "dtype": "float32"},
        "method": {"temperature": 2.0},
        "data": {
            "sources": [{"path": str(text)}],
            "sequence_length": 32,
            "validation": 0.2,
            "max_validation_blocks": 4,
        },
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_steps": 2,
            "use_cpu": True,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def finished(teacher: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    assert lrc("train", write_recipe(teacher, text, folder)) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))
