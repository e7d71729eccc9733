"""How many tokens were made, how fast, and how long the rest will take."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import InputError
from ...progress import Meter, progress
from .job import SourceJob
from .records import read_record
from .tasks import Work

# Tokens a byte of a file, about, until the first part of a source is done: packed files have more text in a byte.
_PACKED = {".gz": 0.75, ".zst": 0.75, ".parquet": 0.5}
_PLAIN = 0.25
_DRAFT = re.compile(r"\.(\d{5,})-.*")


def check_space(work: Work) -> None:
    """Refuse work that would fill the disk, before it begins.

    Raises:
        InputError: Less is free than half of what the shards will take, about.
    """
    folder = work.jobs[0].folder
    wanted = sum(_guess(work.jobs[i], part) * work.jobs[i].empty.token_bytes for i, part in work.todo)
    free = shutil.disk_usage(folder).free
    if wanted / 2 > free:
        raise InputError(
            f"the shards in {folder.parent} will take about {wanted / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; "
            "free some space there, or set data.shards to another folder"
        )


@contextmanager
def token_meter(work: Work, shown: bool) -> Iterator[TokenMeter]:
    """The progress of work, shown until the context is left."""
    sources = [_Source(job, [part for index, part in work.todo if index == i]) for i, job in enumerate(work.jobs)]
    total = max(1, sum(source.expected() for source in sources))
    with progress(total, "tokenising", "token", shown=shown) as meter:
        yield TokenMeter(sources, meter)


class TokenMeter:
    """Is told of tokens that are made (`advance`), or looks for them on the disk (`look`)."""

    def __init__(self, sources: list[_Source], meter: Meter) -> None:
        self._sources, self._meter, self._told = sources, meter, 0

    def advance(self, tokens: int) -> None:
        """So many more tokens are made, in this process."""
        self._told += tokens
        self._meter.expect(max(self._told, sum(source.expected() for source in self._sources)))
        self._meter.advance(tokens)

    def finished(self, job: int, part: int) -> None:
        """A part is done, in this process."""
        self._sources[job].finished(part)

    def look(self) -> None:
        """Read off the disk what other processes have made."""
        made = sum(source.made() for source in self._sources)
        self.advance(max(0, made - self._told))

    def end(self) -> None:
        """All is made."""
        self._meter.expect(self._told)


class _Source:
    """What of one source is to be made, and what is done of it."""

    def __init__(self, job: SourceJob, todo: list[int]) -> None:
        self._job, self._todo, self._count, self._began = job, todo, len(todo), time.time_ns()
        self._left = sum(job.parts[part].size for part in todo)
        self._bytes = self._tokens = 0
        self._rate = sum(_guess(job, part) for part in todo) / max(1, self._left)

    def expected(self) -> int:
        """Tokens in all, about."""
        if self._job.limit is not None:
            return self._job.limit * self._count
        rate = self._tokens / self._bytes if self._bytes else self._rate
        return self._tokens + round(rate * self._left)

    def finished(self, part: int) -> None:
        """A part's shard was made."""
        record = read_record(self._job.folder / f"{self._job.name(part)}.json")
        assert record is not None
        self._todo.remove(part)
        self._bytes += self._job.parts[part].size
        self._left -= self._job.parts[part].size
        self._tokens += record.tokens

    def made(self) -> int:
        """Tokens of finished shards and of those that are being written."""
        tokens = 0
        for path in self._job.folder.iterdir():
            if found := _DRAFT.fullmatch(path.name):
                with suppress(FileNotFoundError):  # it was finished meanwhile
                    tokens += os.path.getsize(path / f"{found[1]}.ds") // self._job.empty.token_bytes
        for part in list(self._todo):
            with suppress(FileNotFoundError):
                record = self._job.folder / f"{self._job.name(part)}.json"
                if record.stat().st_mtime_ns >= self._began:
                    self.finished(part)
        return self._tokens + tokens


def _guess(job: SourceJob, part: int) -> float:
    files = job.parts[part].files
    return job.parts[part].size * _PACKED.get(Path(files[0]).suffix.lower() if files else "", _PLAIN)
