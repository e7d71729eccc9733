"""The folder of a run: what may be one, what a new run may replace there, and when the old run goes.

A run that replaces another one writes into the hidden folder `.new-run` inside the other's until it has a complete
checkpoint of a step that it trained. Only then the old run is deleted, file by file from its manifest, and the new one
takes its place. A new run that ends before that leaves the old one as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..training.checksums import seal
from ..training.last_checkpoint import complete_checkpoints
from ..training.metrics import MetricsFile
from ..training.trainer import CloneTrainer
from .disk import disk_errors, shown_path
from .manifest import MANIFEST_FILE, RUN_FILES, our_files, record, remove, set_aside
from .output_folder import NEW


class RunFolder:
    """The folder of one run while it goes; a context that tidies up when the run fails early.

    Args:
        checkpoint: What the run resumes, from `check_folder`.
        leader: Whether this process is the one that writes.
    """

    def __init__(self, folder: Path, checkpoint: Path | None, leader: bool) -> None:
        self.folder, self.checkpoint, self.leader = folder, checkpoint, leader
        self.replaces = checkpoint is None and folder.is_dir() and any(path.name != NEW for path in folder.iterdir())
        self.path = folder / NEW if self.replaces else folder
        self._made: list[Path] = []

    def begin(self, files: Mapping[str, str]) -> None:
        """Make the folder and write these texts by name. A resumed run only shows that it can write.

        Raises:
            InputError: It can't be written to.
        """
        if not self.leader:
            return
        with disk_errors(
            f"training.output_dir: `{shown_path(self.folder)}` can't be written to", "nothing was changed"
        ):
            if self.checkpoint is not None:
                probe = self.folder / ".probe"
                probe.write_bytes(b" " * 4096)
                probe.unlink()
                return
            drop_new(self.folder)
            self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            record(self.path, [])  # first, so that whatever cuts this off leaves a folder that is known
            for name, text in files.items():
                self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """Write one of the run's small files whole or not at all."""
        if not self.leader:
            return
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        set_aside(self.path, self.path / name)
        os.replace(part, self.path / name)
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
        if self.checkpoint is not None and self.checkpoint.parent.name == NEW:
            if self.leader:
                take_place(self.folder)
            self.checkpoint = self.folder / self.checkpoint.name
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
        before = self.path
        if self.leader:
            take_place(self.folder)
        self.replaces, self.path = False, self.folder
        trainer.args.output_dir = str(self.path)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, MetricsFile):
                callback.path = self.path / callback.path.name
        if (best := trainer.state.best_model_checkpoint) is not None:
            trainer.state.best_model_checkpoint = str(self.path / Path(best).relative_to(before))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None or not self.leader or self.checkpoint is not None or complete_checkpoints(self.path):
            return
        remove(_parts(self.path), self.path)
        remove(our_files(self.path), self.path)
        for made in self._made:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def take_place(folder: Path) -> None:
    """Delete the run in `folder` and put the one from `.new-run` there. Done again, it completes what was cut off."""
    new = folder / NEW
    for state in new.glob("checkpoint-*/trainer_state.json"):  # which names the best checkpoint by its path
        text = state.read_text(encoding="utf-8")
        if str(new) in text:
            state.write_text(text.replace(str(new), str(folder)), encoding="utf-8")
            seal(state.parent)
            record(new, [state, state.parent / MANIFEST_FILE])
    remove(our_files(folder), folder)
    # The checkpoints after the small files and the manifest last: until then the new run is known where it was.
    moved = sorted(our_files(new), key=lambda file: (file.name == MANIFEST_FILE, file.parent != new))
    for file in moved:
        target = folder / file.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    remove(moved, folder)


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
