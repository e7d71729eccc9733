"""Which checkpoints of a run can be gone on from. Imports no PyTorch, so that a wrong folder is told at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from .checksums import damage, sealed_files

STATE_FILE = "trainer_state.json"
_log = logging.getLogger(__name__)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run whose files are what was written; damaged ones are named in a warning."""
    for folder in _newest_first(Path(output_dir)):
        wrong = damage(folder)
        if wrong is None and STATE_FILE in sealed_files(folder):
            return folder
        _log.warning("%s is not used: %s", folder, wrong or f"it lists no {STATE_FILE}")
    return None


def complete_checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The folders of a run's complete checkpoints by their step; their files are not read."""
    folders = [folder for folder in _newest_first(Path(output_dir)) if STATE_FILE in sealed_files(folder)]
    return {int(folder.name.rsplit("-", 1)[1]): folder for folder in reversed(folders)}


def _newest_first(output_dir: Path) -> Iterable[Path]:
    """Folders of checkpoints; one that was set aside (`manifest.replacing`) comes after the one in its place."""
    pattern = re.compile(r"(_?)checkpoint-(\d+)")
    found = {
        (int(match[2]), not match[1]): folder
        for folder in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := pattern.fullmatch(folder.name)) and folder.is_dir()
    }
    return [found[key] for key in sorted(found, reverse=True)]
