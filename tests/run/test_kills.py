"""Killed at any file operation, a run that is given `--resume auto` ends as one that was not disturbed, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import lrc
from kills import in_a_child
from tiny_inputs import write_recipe

# Evaluations, checkpoints that are rotated out, logs over several steps, running means, a best checkpoint, a switch.
OPTIONS = (
    *("training.max_steps=5", "training.save_steps=2", "training.save_total_limit=1", "training.logging_steps=3"),
    *("training.eval_strategy=steps", "training.eval_steps=2", "training.load_best_model_at_end=true"),
    *("method.init=channels", "method.calibration.tokens=128", "method.clone_normalization=target"),
)


def left(run: Path) -> dict[str, Any]:
    """What a run leaves: its student and card, its factors and optimiser, what it measured, its metrics."""
    files = [*sorted((run / "student").iterdir()), *sorted(run.glob("checkpoint-*/*"))]
    exact = ("results.json", "metrics.jsonl", "recipe.yaml")
    found = {str(file.relative_to(run)): file.read_bytes() for file in [*files, *(run / name for name in exact)]}
    assert sorted(path.name for path in run.iterdir() if path.name.startswith((".", "_"))) == []
    assert (run / "curves.png").is_file()
    return {name: data for name, data in found.items() if not name.endswith(("trainer_state.json", "manifest.json"))}


@pytest.fixture(scope="module")
def older(teacher: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another seed, which the killed one is to replace."""
    folder = tmp_path_factory.mktemp("older")
    recipe = write_recipe(teacher, text, folder)
    assert lrc("train", recipe, *OPTIONS, "training.seed=7", "training.max_steps=8") == 0
    return folder / "run"


class Scene:
    """A run that is begun again and again, to be killed: a new one, or one that replaces an older one."""

    def __init__(self, recipe: Path, run: Path, older: Path | None) -> None:
        self.recipe, self.run, self.older = recipe, run, older

    def train(self, last: int | None = None, torn: bool = False) -> tuple[int, list[str]]:
        shutil.rmtree(self.run, ignore_errors=True)
        if self.older is not None:
            shutil.copytree(self.older, self.run)
        flags = [] if self.older is None else ["--overwrite"]
        return in_a_child(lambda: lrc("train", self.recipe, *OPTIONS, *flags), self.run, last, torn)

    def wrong_after(self, place: int, torn: bool, whole: dict[str, Any]) -> set[str]:
        """What differs from an undisturbed run in one that was killed before this operation and went on."""
        assert self.train(place, torn)[0] == -9
        assert in_a_child(lambda: lrc("train", self.recipe, *OPTIONS, "--resume", "auto"), self.run)[0] == 0
        now = left(self.run)
        return {name for name in whole | now if whole.get(name) != now.get(name)}


# A moment of each kind; the hidden folders are those of a run that replaces another one.
MOMENTS = (
    *("recipe.yaml", "open /metrics.jsonl", "/checkpoint-2/plan.json", "fsync /checkpoint-4/optimizer.pt"),
    *("remove /checkpoint-2/rng", "rename /.student.part/model", "rename /.student.part/config"),
    *("remove /checkpoint-8/opt", "rename /.taking-place/checkpoint-2", "rename /.taking-place/manifest"),
)


@pytest.mark.parametrize("kind", ["new", "replacing"])
def test_killed_at_chosen_moments(kind: str, recipe: Path, tmp_path: Path, older: Path) -> None:
    scene = Scene(recipe, tmp_path / "run", None if kind == "new" else older)
    code, seen = scene.train()
    assert code == 0
    whole = left(scene.run)
    places = [next((at for at, told in enumerate(seen, 1) if moment in told), None) for moment in MOMENTS]
    chosen = [place for place in places if place is not None]
    if kind == "replacing":  # what it does after it has taken its place is what a new run does
        chosen = chosen[-3:]
    assert len(chosen) == (7 if kind == "new" else 3)
    for count, place in enumerate(chosen):
        assert not scene.wrong_after(place, count % 2 == 1, whole), seen[place - 1]


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("kind", ["new", "replacing"])
def test_killed_at_every_file_operation(kind: str, torn: bool, recipe: Path, tmp_path: Path, older: Path) -> None:
    scene = Scene(recipe, tmp_path / "run", None if kind == "new" else older)
    code, seen = scene.train()
    assert code == 0
    whole = left(scene.run)
    wrong = {seen[place - 1]: scene.wrong_after(place, torn, whole) for place in range(1, len(seen) + 1)}
    assert not {told: names for told, names in wrong.items() if names}
