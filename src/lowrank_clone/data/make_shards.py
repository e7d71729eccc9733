"""Every source as shards: those that are there and fit are used again, and the others are made, once, whoever asks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import named
from .config import DataConfig, SourceConfig
from .sharding.job import SourceJob, make_job
from .sharding.local import run_local
from .sharding.locking import locked
from .sharding.meter import token_meter
from .sharding.parts import finish_source, make_shard
from .sharding.records import MANIFEST_FILE
from .sharding.state import State, look_at
from .sharding.tasks import Work
from .shards import TokenSource, open_source


def make_shards(
    sources: Sequence[tuple[str, SourceConfig]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    *,
    needed: Mapping[str, int | None] | None = None,
    progress: bool = True,
    workers: int | None = None,
    mend: bool = False,
) -> list[TokenSource]:
    """The shards of all sources, in their order.

    Any number of processes may ask at once: one makes what is missing while the others wait.

    Args:
        sources: With their keys, as `data.sources.0`.
        needed: By key, the tokens that are wanted of a Hub dataset; it is not read any further. Files are read whole.
        progress: Whether to say on stderr what is done, and how far it is.
        workers: Processes; data.num_proc unless given, else one for each core. The shards are the same for any number.
        mend: Make truncated and altered shards again; else they are refused.

    Raises:
        InputError: Anything that is wrong with the sources, the tokenizer, the shards that are there, or the disk. What
            was finished is kept.
    """
    say = _say if progress else _silent
    jobs = _jobs(sources, config, tokenizer, vocab_size, needed or {})
    _make(jobs, [look_at(job, mend) for job in jobs], say, workers or config.num_proc, None, mend)
    return [_opened(job) for job in jobs]


def make_share(
    sources: Sequence[tuple[str, SourceConfig]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    share: tuple[int, int],
    *,
    needed: Mapping[str, int | None] | None = None,
    workers: int | None = None,
) -> int:
    """Make this machine's share of the shards, in a folder that all machines see; the last of them completes it.

    Args:
        share: (2, 4) is the second of four machines.

    Returns:
        How many shards are missing that other machines have to make.

    Raises:
        InputError: As `make_shards`.
    """
    jobs = _jobs(sources, config, tokenizer, vocab_size, needed or {})
    _make(jobs, [look_at(job, True) for job in jobs], _say, workers or config.num_proc, share, True)
    return sum(len(look_at(job, True).todo) for job in jobs)


def _make(
    jobs: list[SourceJob],
    states: list[State],
    say: Callable[[str], None],
    workers: int | None,
    share: tuple[int, int] | None,
    mend: bool,
) -> None:
    for job, state in zip(jobs, states, strict=True):
        if state.complete:
            say(_used_again(job))
    pending = [job for job, state in zip(jobs, states, strict=True) if not state.complete]
    if not pending:
        return
    number = "" if share is None else f"-{share[0]}-of-{share[1]}"
    with ExitStack() as stack:
        for job in sorted(pending, key=lambda job: job.folder):  # in one order, so that no two wait for each other
            stack.enter_context(locked(job.folder, f".lock{number}", say))
        todo = []
        for index, job in enumerate(pending):
            state = look_at(job, mend)
            state.describe(say)
            chosen = [part for part in state.todo if share is None or part % share[1] == share[0] - 1]
            if state.todo:
                (job.folder / MANIFEST_FILE).unlink(missing_ok=True)
            todo += [(index, part) for part in chosen]
        began = time.time_ns()
        if todo:
            _run(Work(tuple(pending), tuple(todo)), pending[0].folder / f".run{number}", workers, say is not _silent)
        for job in pending:
            finish_source(job)
            _describe(job, began, say)


def _describe(job: SourceJob, began: int, say: Callable[[str], None]) -> None:
    """Say how many shards are new, of those that are there."""
    ids = [job.folder / f"{job.name(index)}.ds" for index in range(len(job.parts))]
    times = [path.stat().st_mtime_ns for path in ids if path.exists()]
    if new := sum(moment >= began for moment in times):
        say(f"{job.key}: {new:,} shards were made, {len(times):,} of {len(ids):,} are in {job.folder}")
    else:
        say(_used_again(job))


def _used_again(job: SourceJob) -> str:
    return f"{job.key}: {len(job.parts):,} shards in {job.folder} are used again"


def _run(work: Work, folder: Path, workers: int | None, shown: bool) -> None:
    """Make the shards, in this process if there is one to make or one worker."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(work.todo))
    with token_meter(work, shown) as meter:
        if workers == 1:
            for job, part in work.todo:
                if make_shard(work.jobs[job], part, meter.advance):
                    meter.finished(job, part)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            try:
                run_local(work, folder, workers, meter.look)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        meter.end()


def _jobs(
    sources: Sequence[tuple[str, SourceConfig]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    needed: Mapping[str, int | None],
) -> list[SourceJob]:
    jobs = []
    for key, source in sources:
        with named(key):
            jobs.append(make_job(key, source, config, tokenizer, vocab_size, needed.get(key)))
    return jobs


def _opened(job: SourceJob) -> TokenSource:
    source = open_source(job.folder)
    if job.strict and source.manifest.first_error is not None:
        with named(job.key):
            raise InputError(source.manifest.first_error)
    return source


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
