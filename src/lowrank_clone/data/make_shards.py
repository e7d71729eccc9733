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

from ..errors import InputError, count_of
from .check import named
from .config import DataConfig, SourceConfig
from .sharding import slurm
from .sharding.job import SourceJob, check_tokenizer_of_shards, make_job
from .sharding.local import run_local
from .sharding.locking import locked
from .sharding.meter import check_space, token_meter
from .sharding.parts import finish_source, make_shard, remove_drafts
from .sharding.records import MANIFEST_FILE
from .sharding.state import look_at
from .sharding.tasks import Work
from .shards import TokenSource, open_source

Say = Callable[[str], None]


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
    say = say_on_stderr if progress else _silent
    jobs = make_jobs(sources, config, tokenizer, vocab_size, needed)
    return make(jobs, say, workers=workers or config.num_proc, mend=mend)


def make_jobs(
    sources: Sequence[tuple[str, SourceConfig]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    needed: Mapping[str, int | None] | None = None,
) -> list[SourceJob]:
    """What is to be made of each source; see `make_shards`.

    Raises:
        InputError: A source is not there, or data.shards holds it for another tokenizer or chat template.
    """
    jobs = []
    for key, source in sources:
        with named(key):
            job = make_job(key, source, config, tokenizer, vocab_size, (needed or {}).get(key))
        if config.shards is not None:
            check_tokenizer_of_shards(job)
        jobs.append(job)
    return jobs


def make(jobs: list[SourceJob], say: Say, *, workers: int | None, mend: bool) -> list[TokenSource]:
    """Make what is missing, with processes of this machine, and open it; see `make_shards`."""
    _make(jobs, say, mend, "", lambda work, folder: _run(work, folder, workers, say is not _silent))
    return [_opened(job) for job in jobs]


def make_share(jobs: list[SourceJob], say: Say, share: tuple[int, int], *, workers: int | None) -> int:
    """Make this machine's share of the shards, in a folder that all machines see; the last of them completes it.

    Args:
        share: (2, 4) is the second of four machines.

    Returns:
        How many shards are missing, which other machines have to make.

    Raises:
        InputError: As `make_shards`.
    """
    number, count = share
    run = lambda work, folder: _run(work, folder, workers, True)  # noqa: E731
    _make(jobs, say, True, f"-{number}-of-{count}", run, lambda part: part % count == number - 1)
    return sum(len(state.missing) + len(state.changed) for state in (look_at(job, True) for job in jobs))


def submit_shards(jobs: list[SourceJob], say: Say, tasks: int, options: Mapping[str, str]) -> None:
    """Let Slurm make what is missing, in an array of at most `tasks` tasks; the last of them completes it.

    Args:
        options: Of sbatch, `partition` and `time` among them.

    Raises:
        InputError: As `make_shards`; there is no sbatch, or it refuses the job.
    """

    def submit(work: Work, _: Path) -> None:
        count = min(tasks, len(work.todo))
        job = slurm.submit(work, count, options)
        say(
            f"submitted Slurm's job {job}, {count_of(count, 'task')} for "
            f"{count_of(len(work.todo), 'shard')}; the last one completes them. "
            f"Its output and errors are in {work.jobs[0].folder / slurm.FOLDER}"
        )

    _make(jobs, say, True, "", submit)


def verify_shards(jobs: list[SourceJob]) -> list[TokenSource]:
    """Hold all shards against their checksums, and their sources against what they were made of; make nothing.

    Raises:
        InputError: They are missing, damaged, or of another text.
    """
    found = []
    for job in jobs:
        state, again = look_at(job, False), "`lrc data RECIPE` makes them"
        if not (job.folder / MANIFEST_FILE).exists():
            raise InputError(
                f"{job.key}: {len(state.missing):,} of {len(job.parts):,} shards of `{job.source.path}` are missing in "
                f"{job.folder}; {again}"
            )
        if other := state.other_text():
            raise InputError(f"{job.key}.path: {other} is not the text that was tokenised; {again} again")
        with named(job.key):
            found.append(open_source(job.folder, verify=True))
    return found


def _make(
    jobs: list[SourceJob],
    say: Say,
    mend: bool,
    suffix: str,
    run: Callable[[Work, Path], None],
    chosen: Callable[[int], bool] = lambda part: True,
) -> None:
    """Have the missing parts of all sources made while their folders are locked."""
    pending = []
    for job in jobs:
        if look_at(job, mend).complete:
            say(_used_again(job))
        else:
            pending.append(job)
    if not pending:
        return
    with ExitStack() as stack:
        for job in sorted(pending, key=lambda job: job.folder):  # in one order, so that no two wait for each other
            stack.enter_context(locked(job.folder, f".lock{suffix}", say))
            if (number := slurm.queued(job.folder)) is not None:
                raise InputError(f"{job.key}: Slurm's job {number} makes the shards in {job.folder}; wait for its end")
        todo, folder = [], pending[0].folder / f".run{suffix}"
        for index, job in enumerate(pending):
            shutil.rmtree(job.folder / folder.name, ignore_errors=True)  # of a run that was killed
            state = look_at(job, mend)
            state.describe(say)
            if state.todo:
                (job.folder / MANIFEST_FILE).unlink(missing_ok=True)
            todo += [(index, part) for part in state.todo if chosen(part)]
        began = time.time_ns()
        if todo:
            check_space(Work(tuple(pending), tuple(todo)))
            run(Work(tuple(pending), tuple(todo)), folder)
        for job in pending:
            finish_source(job, tidy=not suffix)
            _describe(job, began, say)


def _run(work: Work, folder: Path, workers: int | None, shown: bool) -> None:
    """Make the shards, in this process if there is one to make or one worker."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(work.todo))
    with token_meter(work, shown) as meter:
        if workers == 1:
            for job, part in work.todo:
                if make_shard(work.jobs[job], part, meter.advance):
                    meter.finished(job, part)
        else:
            try:
                run_local(work, folder, workers, meter.look)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                for job, part in work.todo:
                    remove_drafts(work.jobs[job], part)  # of workers that were stopped
        meter.end()


def _describe(job: SourceJob, began: int, say: Say) -> None:
    """Say how many shards are new, of those that are there."""
    ids = [job.folder / f"{job.name(index)}.ds" for index in range(len(job.parts))]
    times = [path.stat().st_mtime_ns for path in ids if path.exists()]
    if new := sum(moment >= began for moment in times):
        say(f"{job.key}: made {count_of(new, 'shard')}; {len(times):,} of {len(ids):,} are in {job.folder}")
    elif (job.folder / MANIFEST_FILE).exists():
        say(_used_again(job))


def _used_again(job: SourceJob) -> str:
    return f"{job.key}: using {count_of(len(job.parts), 'shard')} of before, in {job.folder}"


def _opened(job: SourceJob) -> TokenSource:
    source = open_source(job.folder)
    with named(job.key):
        if job.strict and source.manifest.first_error is not None:
            raise InputError(source.manifest.first_error)
        if source.tokens == 0:
            reasons = ", ".join(
                f"{count_of(count, 'row')} left out: {why}" for why, count in source.manifest.dropped.items()
            )
            raise InputError(
                f"path: `{job.source.path}` holds no text{f' ({reasons})' if reasons else ''}; expected at least one "
                "document"
            )
    return source


def say_on_stderr(line: str) -> None:
    """One line for who waits."""
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
