"""Which files a checkpoint consists of, and their checksums: written last, so that what it lists was complete.

    checkpoint-200/  factors.safetensors  plan.json  optimizer.pt  scheduler.pt  rng_state.pth  trainer_state.json
                     manifest.json        {"format": 1, "files": {"plan.json": {"bytes": .., "sha256": ".."}, ..}}

A folder without it is a save that was cut off; one whose files differ from it is damaged. Neither is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .durable import read_object, sync, write_whole

MANIFEST_FILE = "manifest.json"
FORMAT = 1
# What `CloneTrainer` writes into a checkpoint's folder.
CHECKPOINT_FILES = re.compile(
    r"(factors\.safetensors|plan\.json|trainer_state\.json|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth"
    r"|running\.json|\.?manifest\.json(\.new|\.part)?)"
)


def seal(folder: Path) -> None:
    """Write the manifest of all files that lie in a folder, in one step, once all of them are on the disk."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and MANIFEST_FILE not in path.name]
    for path in paths:
        sync(path)
    files = {path.name: _entry(path) for path in paths}
    write_whole(folder / MANIFEST_FILE, json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")
    sync(folder.parent)


def sealed_files(folder: Path) -> set[str]:
    """Names of the files that the manifest lists; empty without a readable one."""
    files = read_object(folder / MANIFEST_FILE).get("files")
    return set(files) if isinstance(files, dict) else set()


def damage(folder: Path) -> str | None:
    """The first thing that is wrong with a checkpoint's files, or None. Reads them all (about 1 GB/s)."""
    if not (folder / MANIFEST_FILE).is_file():
        return f"it has no {MANIFEST_FILE}, which is written last, so its save was cut off"
    manifest = read_object(folder / MANIFEST_FILE)
    if "format" not in manifest:
        return f"its {MANIFEST_FILE} is damaged"
    if manifest["format"] != FORMAT:
        return f"its {MANIFEST_FILE} has format {manifest['format']}, expected {FORMAT}; another version wrote it"
    if not sealed_files(folder):
        return f"its {MANIFEST_FILE} is damaged"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.get("bytes"):
            return f"{name} is damaged: {path.stat().st_size} bytes, expected {expected.get('bytes')}"
        if _entry(path) != expected:
            return f"{name} is damaged: its checksum differs from {MANIFEST_FILE}"
    return None


@contextmanager
def written_whole(folder: Path, leads: bool = True, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Write a checkpoint into `folder` so that it counts only once all of it is there.

    What lay there is set aside as `_<name>`, where `last_checkpoint` finds it, until then, and comes back on an error.

    Args:
        leads: Whether this process is the one that makes and seals the folder; others write into it too.
        wait: Waits for all processes.
    """
    before = aside(folder)
    if leads:
        if (folder / MANIFEST_FILE).is_file():
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        folder.mkdir(parents=True, exist_ok=True)
    wait()
    try:
        yield
        wait()
        if leads:
            seal(folder)
    except BaseException:
        if leads:
            remove_files(folder)
            if before.is_dir():
                before.rename(folder)
        raise
    if leads:
        remove_files(before)


def remove_files(folder: Path) -> None:
    """Delete what `CloneTrainer` wrote into a checkpoint's folder, and the folder if nothing else is in it."""
    files = [path for path in folder.iterdir() if CHECKPOINT_FILES.fullmatch(path.name)] if folder.is_dir() else []
    for path in sorted(files, key=lambda path: path.name != MANIFEST_FILE):  # first what makes it count
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def aside(folder: Path) -> Path:
    """Where a checkpoint lies while another is written in its place."""
    return folder.with_name(f"_{folder.name}")


def _entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
