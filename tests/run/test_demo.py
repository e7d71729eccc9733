"""`lrc demo` on a tiny teacher: the comparison is printed, and a demo is replaced like any other run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import lrc, refused

from lowrank_clone.run import demo, demo_teacher
from lowrank_clone.run.manifest import our_files

OPTIONS = (
    *("student.hidden_size=16", "data.sequence_length=32", "data.validation=0.2", "data.max_validation_blocks=2"),
    *("method.calibration.tokens=128", "training.total_tokens=64", "training.per_device_train_batch_size=2"),
    *("training.per_device_eval_batch_size=2", "training.use_cpu=true", "teacher.dtype=float32"),
)


@pytest.fixture
def place(teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run the demo in."""

    def write(folder: Path) -> int:
        shutil.copytree(text, folder, dirs_exist_ok=True)
        return 12

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_teacher, "teacher_file", lambda: teacher)
    monkeypatch.setattr(demo, "write_text", write)
    return tmp_path / "runs" / "demo"


def test_the_demo_compares_four_models_and_can_be_run_again(place: Path, capsys) -> None:
    assert lrc("demo", *OPTIONS) == 0
    shown = capsys.readouterr().out
    for row in ("teacher", "scratch student", "LRC student before training", "LRC student"):
        assert f"│ {row} " in shown
    assert f"LRC student: {demo.PROMPT}" in shown
    names = {str(path.relative_to(place)) for path in our_files(place.relative_to(Path.cwd()).resolve())}
    assert {"scratch/metrics.jsonl", "curves.png", "student/model.safetensors"} <= names
    (place / "scratch" / "mine.txt").write_text("mine")
    assert lrc("demo", *OPTIONS, "training.seed=3") == 0
    assert (place / "scratch" / "mine.txt").read_text() == "mine"
    assert "seed: 3" in (place / "recipe.yaml").read_text()


def test_the_demo_writes_over_nothing_of_the_user_s(place: Path, capsys) -> None:
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    assert "holds no run" in refused(capsys, "demo", *OPTIONS)
    assert [path.name for path in place.iterdir()] == ["notes.txt"] and not (place.parent / "demo-text").exists()
