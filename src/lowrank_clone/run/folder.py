"""The folder of a run: what may be one, what a new run may replace there, and when the old run goes.

A run that replaces another one writes into the hidden folder `.new-run` inside the other's until it has a complete
checkpoint of a step that it trained. Only then the old run is deleted, file by file from its manifest, and the new one
takes its place. A new run that ends before that leaves the old one as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..training.checksums import remove_files
from ..training.durable import sync, write_whole
from ..training.last_checkpoint import complete_checkpoints, relocate_best, unfinished_checkpoints
from ..training.metrics import MetricsFile
from ..training.trainer import CloneTrainer
from .disk import disk_errors, shown_path
from .lock import locked
from .manifest import MANIFEST_FILE, RUN_FILES, our_files, record, remove, set_aside
from .output_folder import LOCK, NEW, TAKING


class RunFolder:
    """The folder of one run while it goes; a context that tidies up when the run fails early.

    Args:
        checkpoint: What the run resumes, from `check_folder`.
        leader: Whether this process is the one that writes.
    """

    def __init__(self, folder: Path, checkpoint: Path | None, leader: bool) -> None:
        self.folder, self.checkpoint, self.leader = folder, checkpoint, leader
        others = [path.name for path in folder.iterdir() if path.name not in (NEW, LOCK)] if folder.is_dir() else []
        self.replaces = checkpoint is None and bool(others)
        self.path = folder / NEW if self.replaces else folder
        self._made: list[Path] = []
        self._lock = ExitStack()

    def begin(self, files: Mapping[str, str]) -> None:
        """Make the folder and write these texts by name. A resumed run only shows that it can write.

        Raises:
            InputError: It can't be written to.
        """
        if not self.leader:
            return
        with _writing(self.folder):
            if self.checkpoint is not None:
                probe = self.folder / ".probe"
                probe.write_bytes(b" " * 4096)
                probe.unlink()
                return
            if (self.folder / TAKING).is_dir():
                take_place(self.folder)
            drop_new(self.folder)
            self._made = [*([self.path] if not self.path.exists() else []), *self._made]
            self.path.mkdir(parents=True, exist_ok=True)
            record(self.path, [])  # first, so that whatever cuts this off leaves a folder that is known
            for name, text in files.items():
                self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """Write one of the run's small files whole or not at all."""
        if not self.leader:
            return
        if not (self.path / name).is_file() or (self.path / name).read_bytes() != text.encode():
            set_aside(self.path, self.path / name)
            write_whole(self.path / name, text)
        self.add([self.path / name])

    def add(self, files: Iterable[Path]) -> None:
        """Note files that were just written as this run's."""
        record(self.path, files)

    def after_a_full_disk(self) -> str:
        """What to do about a disk that was full while the run went."""
        again = "go on with --resume" if complete_checkpoints(self.path) else "begin again"
        kept = f"; the run in {self.folder} is as it was" if self.replaces else ""
        return f"make room on the disk and {again}{kept}"

    def how_to_go_on(self) -> str:
        """What is on the disk, and what to do with it, for somebody who stopped the run."""
        found = complete_checkpoints(self.path)
        kept = f"; the run in {self.folder} is as it was" if self.replaces else ""
        if not found:
            return f"nothing was saved{kept}"
        return f"{found[max(found)]} is saved, and the same command with --resume goes on from it{kept}"

    def take_place(self) -> Path | None:
        """Before a resumed run goes on: the run in `.new-run`, if that is the one, takes the old one's place.

        Returns:
            The checkpoint to resume, where it lies now.
        """
        if self.checkpoint is not None:
            if self.leader and (self.checkpoint.parent.name == NEW or (self.folder / TAKING).is_dir()):
                take_place(self.folder)
            self.checkpoint = self.folder / self.checkpoint.name
            if self.leader:
                for folder in unfinished_checkpoints(self.folder):
                    remove_files(folder)
                remove(_parts(self.folder), self.folder)
        return self.checkpoint

    def saved(self, trainer: CloneTrainer) -> None:
        """Note a complete checkpoint; with the first one after a step that was trained, take an older run's place."""
        step = trainer.state.global_step
        if self.leader:
            self.add([self.path / f"{PREFIX_CHECKPOINT_DIR}-{step}"])
        if step > 0:
            self.replace_older(trainer)

    def replace_older(self, trainer: CloneTrainer) -> None:
        """Take the place of the run that this one replaces, if there is one, and let `trainer` go on there."""
        if not self.replaces:
            return
        if self.leader:
            take_place(self.folder)
        self.replaces, self.path = False, self.folder
        trainer.args.output_dir = str(self.path)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, MetricsFile):
                callback.path = self.path / callback.path.name
        relocate_best(trainer.state, self.path)

    def __enter__(self) -> RunFolder:
        """Lock the folder, before anything is written.

        Raises:
            InputError: Another process holds it, or it can't be written to.
        """
        if self.leader:
            with _writing(self.folder):
                self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    self._lock.enter_context(locked(self.folder))
                except BaseException:
                    self._remove_made()
                    raise
        return self

    def __exit__(self, *error: object) -> None:
        self._tidy(failed=error[0] is not None)
        self._lock.close()
        self._remove_made()

    def _tidy(self, failed: bool) -> None:
        if not failed or not self.leader or self.checkpoint is not None or complete_checkpoints(self.path):
            return
        remove(_parts(self.path), self.path)
        remove(our_files(self.path), self.path)

    def _remove_made(self) -> None:
        """Remove the folders that were made and hold nothing."""
        for made in self._made:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def _writing(folder: Path) -> AbstractContextManager[None]:
    return disk_errors(f"training.output_dir: `{shown_path(folder)}` can't be written to", "nothing was changed")


def take_place(folder: Path) -> None:
    """Delete the run in `folder` and put the one from `.new-run` there. Done again, it completes what was cut off.

    The old run goes first, while the new one is known where it is. One renaming tells that the old one is gone. Then
    the new run's small files are moved, its checkpoints, each whole and the newest last, and its manifest at the end.
    """
    new, taking = folder / NEW, folder / TAKING
    if not taking.is_dir():
        old = [*our_files(folder), *_parts(folder), *_parts(new)]
        remove([file for file in old if file != folder / MANIFEST_FILE], folder)
        remove(old, folder)
        os.rename(new, taking)
        sync(folder)
    for part in unfinished_checkpoints(taking):
        remove_files(part)
    names = {file.relative_to(taking).parts[0] for file in our_files(taking)} - {MANIFEST_FILE}
    for name in sorted(names, key=_place_in_line):
        theirs = folder / f"{name}.changed"
        if (folder / name).is_dir():  # something of the user's is left in a checkpoint of the old run
            os.rename(folder / name, theirs)
        os.replace(taking / name, folder / name)
        for file in theirs.iterdir() if theirs.is_dir() else ():
            os.rename(file, folder / name / file.name)
        if theirs.is_dir():
            theirs.rmdir()
    sync(folder)
    if (taking / MANIFEST_FILE).is_file():
        os.replace(taking / MANIFEST_FILE, folder / MANIFEST_FILE)
    if not any(taking.iterdir()):
        taking.rmdir()


def _place_in_line(name: str) -> int:
    """The step of a checkpoint; -1 for what is none."""
    step = name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def drop_new(folder: Path) -> None:
    """Delete what a run that was to replace the one in `folder` left."""
    new = folder / NEW
    if new.is_dir():
        remove([*our_files(new), *_parts(new)], folder)


def _parts(folder: Path) -> list[Path]:
    """Files of this library's that were cut off while they were written."""
    names = (*RUN_FILES, ".probe")
    found = [folder / f".{name}.part" for name in names]
    return [path for path in found if path.is_file() and not path.is_symlink()]
