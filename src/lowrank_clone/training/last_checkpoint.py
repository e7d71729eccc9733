"""Which checkpoints of a run can be gone on from. Imports no PyTorch, so that a wrong folder is told at once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checksums import MANIFEST_FILE, damage, sealed_files

STATE_FILE = "trainer_state.json"
_log = logging.getLogger(__name__)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run whose files are what was written; damaged ones are named in a warning."""
    for folder in _newest_first(Path(output_dir)):
        wrong = damage(folder) or _other_step(folder)
        if wrong is None:
            return folder
        _log.warning("%s is not used: %s", folder, wrong)
    return None


def _other_step(folder: Path) -> str | None:
    """What is wrong with the state of a checkpoint whose files are whole: there is none, or it is another step's."""
    if STATE_FILE not in sealed_files(folder):
        return f"it lists no {STATE_FILE}"
    try:
        step = json.loads((folder / STATE_FILE).read_bytes())["global_step"]
    except (ValueError, LookupError, TypeError):
        return f"{STATE_FILE} is damaged"
    expected = int(folder.name.rsplit("-", 1)[1])
    return None if step == expected else f"its {STATE_FILE} is of step {step!r}, expected {expected}"


def complete_checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The folders of a run's complete checkpoints by their step; their files are not read."""
    folders = [folder for folder in _newest_first(Path(output_dir)) if STATE_FILE in sealed_files(folder)]
    return {int(folder.name.rsplit("-", 1)[1]): folder for folder in reversed(folders)}


def unfinished_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints that were cut off while they were written or deleted, or set aside for one that is whole."""
    found = list(_newest_first(Path(output_dir)))
    whole = {folder.name for folder in found if (folder / MANIFEST_FILE).is_file()}
    return [
        folder for folder in found if folder.name not in whole or folder.name.removeprefix("_") in whole - {folder.name}
    ]


def relocate_best(state: Any, output_dir: str | Path) -> None:
    """Let a trainer's state name its best checkpoint where the run is now; what it stores is a path."""
    folder = Path(output_dir) / f"checkpoint-{state.best_global_step}"
    if state.best_global_step is not None and folder.is_dir():
        state.best_model_checkpoint = str(folder)


def _newest_first(output_dir: Path) -> Iterable[Path]:
    """Folders of checkpoints; one that was set aside (`manifest.replacing`) comes after the one in its place."""
    pattern = re.compile(r"(_?)checkpoint-(\d+)")
    found = {
        (int(match[2]), not match[1]): folder
        for folder in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := pattern.fullmatch(folder.name)) and folder.is_dir()
    }
    return [found[key] for key in sorted(found, reverse=True)]
