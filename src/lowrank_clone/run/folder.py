"""The folder of a run: what may be one, what a new run may replace there, and when the old run goes.

A run that replaces another one writes into the hidden folder `.new-run` inside the other's until it has a complete
checkpoint of a step that it trained. Only then the old run is deleted, file by file from its manifest, and the new one
takes its place. A new run that ends before that leaves the old one as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from datasets.exceptions import DatasetGenerationError
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError, one_line
from ..training.checkpoint import complete_checkpoints, last_checkpoint
from ..training.manifest import seal
from ..training.metrics import MetricsFile
from ..training.trainer import CloneTrainer
from .manifest import MANIFEST_FILE, RUN_FILES, holds_run, our_files, record, refuse_strangers, remove

NEW = ".new-run"
LONGEST_PATH = 3900  # bytes of a folder's path, so that what is written below it stays under Linux' 4,096


@contextmanager
def disk_errors(doing: str, advice: str = "") -> Iterator[None]:
    """Turn an error of the disk into one line: what was being done, the system's reason, and what to do."""
    try:
        yield
    except (OSError, SafetensorError, DatasetGenerationError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, InputError):
            raise cause from error
        reason = (isinstance(cause, OSError) and cause.strerror) or " ".join(str(cause).split())[:300]
        where = f" `{cause.filename}`" if isinstance(cause, OSError) and cause.filename else ""
        raise InputError(f"{doing}:{where} {reason}{f'; {advice}' if advice else ''}") from error


def check_folder(folder: Path, *, resume: bool, overwrite: bool, also: Iterable[str] = ()) -> Path | None:
    """The checkpoint from which a run in `folder` goes on, or None for a run that begins; writes nothing.

    Raises:
        InputError: The folder can't be written to, is no place for a run, holds something that a run would write over,
            holds a run that neither flag speaks of, or `resume` finds no complete checkpoint.
    """
    with disk_errors(f"training.output_dir: `{_shown(folder)}` can't be used", "give another folder"):
        _check_place(folder)
        if not folder.exists() or not any(folder.iterdir()):
            if resume:
                raise InputError(f"--resume: no complete checkpoint in `{folder}`, nor anything else; leave it out")
            return None
        checkpoint = resumable(folder)
        begun = holds_run(folder) or holds_run(folder / NEW)
        if resume and checkpoint is not None:
            return checkpoint
        if resume or not overwrite:
            raise InputError(_advice(folder, checkpoint, begun, resume))
        if not begun and checkpoint is None:
            raise InputError(
                f"--overwrite: `{folder}` is not empty and holds no run that could be replaced; "
                "give another training.output_dir"
            )
        refuse_strangers(folder, [*RUN_FILES, "student", *also])
        return None


def resumable(folder: Path) -> Path | None:
    """The checkpoint that `--resume` takes: of a run that was about to replace the one in `folder`, or of that one."""
    return last_checkpoint(folder / NEW) or last_checkpoint(folder)


def check_apart(folder: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse inputs inside the output folder, which a later run could replace, and an output folder inside an input.

    Args:
        inputs: Files and folders that the run reads, by the key that names each.

    Raises:
        InputError: It names the key.
    """
    output = folder.resolve()
    for key, path in inputs.items():
        real = path.expanduser().resolve()
        if real == output or output in real.parents:
            raise InputError(
                f"{key}: `{path}` lies inside training.output_dir `{folder}`, where runs are replaced; "
                "give another training.output_dir"
            )
        if real in output.parents and real.is_dir():
            raise InputError(
                f"training.output_dir: `{folder}` lies inside {key} `{path}`, which would then hold the run's own "
                "files; give another training.output_dir"
            )


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
        with disk_errors(f"training.output_dir: `{_shown(self.folder)}` can't be written to", "nothing was changed"):
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
        os.replace(part, self.path / name)
        self.add([self.path / name])

    def add(self, files: Iterable[Path]) -> None:
        """Note files that were just written as this run's."""
        record(self.path, files)

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


def _check_place(folder: Path) -> None:
    if len(os.fsencode(os.path.abspath(folder))) > LONGEST_PATH:
        raise InputError(f"training.output_dir: `{_shown(folder)}` is too long; give a shorter path")
    if "\0" in str(folder):
        raise InputError("training.output_dir: holds a zero byte; give another path")
    real, here, home = folder.resolve(), Path.cwd(), Path.home()
    what = {
        "the root of the file system": real == Path(real.anchor),
        "the current folder, or holds it": real == here or real in here.parents,
        "the home folder, or holds it": real == home or real in home.parents,
        "a git repository": (real / ".git").exists(),
    }
    for name, is_it in what.items():
        if is_it:
            raise InputError(f"training.output_dir: `{folder}` is {name}; expected a folder for this run alone")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"training.output_dir: `{folder}` is a file; expected a folder")
    if (folder / NEW).is_symlink():
        raise InputError(f"training.output_dir: `{folder / NEW}` is a link; remove it")
    nearest = next(path for path in (real, *real.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"training.output_dir: `{folder}` lies below the file `{nearest}`; expected folders")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"training.output_dir: `{nearest}` can't be written to; expected a folder that can")


def _advice(folder: Path, checkpoint: Path | None, begun: bool, resume: bool) -> str:
    """What to do about a folder that is not empty, never the flag that was given."""
    if resume:
        if begun:
            return (
                f"--resume: no complete checkpoint in `{folder}`, whose run ended before it saved one; give "
                "--overwrite in place of --resume to begin anew"
            )
        return f"--resume: no complete checkpoint in `{folder}`, which holds no run; give another training.output_dir"
    if checkpoint is not None:
        return (
            f"training.output_dir: `{folder}` is not empty; give --resume to go on, --overwrite to replace that run, "
            "or another training.output_dir"
        )
    if begun:
        return (
            f"training.output_dir: `{folder}` is not empty: its run ended before it saved a checkpoint; give "
            "--overwrite to begin anew, or another training.output_dir"
        )
    return f"training.output_dir: `{folder}` is not empty and holds no run; give another training.output_dir"


def _shown(folder: Path) -> str:
    """A path in an error's one line, cut where it is too long to read."""
    return one_line(folder, 150)
