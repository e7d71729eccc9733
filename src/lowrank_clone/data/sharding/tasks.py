"""The work as datatrove runs it: a pipeline step that makes the shards of some parts, in any process on any machine."""

from __future__ import annotations

import functools
import json
import pickle
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.pipeline.base import PipelineStep

from ...errors import InputError

if TYPE_CHECKING:
    from .job import SourceJob

JOB_FILE = "job.pickle"
ERRORS = "errors"


@dataclass(frozen=True)
class Work:
    """Jobs, and which parts of them are to be made: (job, part), in order."""

    jobs: tuple[SourceJob, ...]
    todo: tuple[tuple[int, int], ...]

    def save(self, folder: Path) -> None:
        """Write it where workers find it: once, and not with each of their tasks."""
        (folder / ERRORS).mkdir(parents=True, exist_ok=True)
        (folder / JOB_FILE).write_bytes(pickle.dumps(self))


class MakeShards(PipelineStep):
    """Makes the shards of the parts `rank`, `rank + world_size`, ... that are to be made.

    Args:
        folder: Where the work was saved. What goes wrong is written there too, as processes lose an error's cause.
        alone: Whether nobody waits for the tasks, so that the last one writes the manifests.
    """

    name = "Shards"
    type = "Tokenizer"

    def __init__(self, folder: str, alone: bool) -> None:
        super().__init__()
        self.folder, self.alone = folder, alone

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """A step at the pipeline's end: it takes no documents and gives none."""
        from .parts import finish_source, make_shard  # imports transformers, which who starts the workers does without

        work = _work(self.folder)
        for number in range(rank, len(work.todo), world_size):
            job, part = work.todo[number]
            try:
                make_shard(work.jobs[job], part)
            except Exception as error:
                _tell_error(Path(self.folder), number, error)
                raise
        if self.alone:
            for made in work.jobs:
                finish_source(made, tidy=False)
        yield from ()


def raise_first_error(folder: Path) -> None:
    """Raise what the first part that failed failed with.

    Raises:
        InputError: It was the user's mistake.
        RuntimeError: It was not.
    """
    for path in sorted((folder / ERRORS).iterdir()):
        told = json.loads(path.read_text(encoding="utf-8"))
        raise InputError(told["text"]) if told["input"] else RuntimeError(f"a worker failed:\n{told['text']}")


def _tell_error(folder: Path, number: int, error: Exception) -> None:
    ours = isinstance(error, InputError)
    text = str(error) if ours else "".join(traceback.format_exception(error))
    with suppress(OSError):  # of a full disk, of which the process that waits then says less
        (folder / ERRORS / f"{number:07d}.json").write_text(json.dumps({"input": ours, "text": text}), encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _work(folder: str) -> Work:
    work = pickle.loads((Path(folder) / JOB_FILE).read_bytes())
    assert isinstance(work, Work)
    return work
