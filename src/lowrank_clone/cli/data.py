"""`lrc data`."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import TYPE_CHECKING

from ..data.files import find_files
from ..errors import InputError, count_of
from ..recipe.load import load_recipe
from ..run.demo_teacher import with_installed_teacher

if TYPE_CHECKING:
    from ..data.sharding.job import SourceJob
    from ..data.shards import TokenSource


def run(arguments: Namespace) -> None:
    """`lrc data RECIPE [section.key=value ...] [--verify | --share I/N | --executor slurm ...] [--workers N]`"""
    share, options = _share(arguments.share), _slurm(arguments)
    recipe = with_installed_teacher(load_recipe(arguments.recipe, arguments.overrides))

    # Imported here: what was checked until now should not wait for PyTorch.
    from ..data.check import check_sources
    from ..run.teacher_place import local_teacher

    check_sources(recipe.data)
    local_teacher(recipe.teacher.model)

    from ..data.make_shards import make, make_share, say_on_stderr, submit_shards, verify_shards
    from ..run.shards import shard_jobs

    jobs, workers = shard_jobs(recipe), arguments.workers or recipe.data.num_proc
    if arguments.verify:
        _print(jobs, verify_shards(jobs))
        print("All shards have their checksums, and are those of the recipe's text and tokenizer.")
    elif arguments.executor == "slurm":
        submit_shards(jobs, say_on_stderr, arguments.tasks or 100, options)
    elif share is not None:
        left = make_share(jobs, say_on_stderr, share, workers=workers)
        print(f"{count_of(left, 'shard')} left to other machines." if left else "All shards are complete.")
    else:
        _print(jobs, make(jobs, say_on_stderr, workers=workers, mend=True))


def _print(jobs: list[SourceJob], sources: list[TokenSource]) -> None:
    for job, source in zip(jobs, sources, strict=True):
        manifest = source.manifest
        size = sum(file.bytes for shard in manifest.shards for file in shard.files.values())
        print(
            f"{job.key} {job.source.path}: {count_of(source.tokens, 'token')} in "
            f"{count_of(source.documents, 'document')}, {count_of(len(manifest.shards), 'shard')} of {size:,} bytes in "
            f"all ({size / max(1, source.tokens):.2f} a token) in {source.folder}"
        )
        found = find_files(job.source.path)
        if found is not None and found.others:
            print(f"  not read: {count_of(len(found.others), 'file')} of other kinds, first: {found.others[0]}")
        for reason, count in manifest.dropped.items():
            print(f"  {count_of(count, 'row')} left out: {reason}")
        if manifest.first_error is not None:
            print(f"  the first malformed one: {manifest.first_error}")


def _share(given: str | None) -> tuple[int, int] | None:
    """`2/4` as (2, 4)."""
    if given is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", given)
    if found is None or int(found[1]) > int(found[2]):
        raise InputError(f"--share: got {given!r}, expected this machine's number and how many there are, as in 2/4")
    return int(found[1]), int(found[2])


def _slurm(arguments: Namespace) -> dict[str, str]:
    """Options of sbatch, from `key=value`."""
    if arguments.executor != "slurm" and (arguments.slurm or arguments.tasks is not None):
        raise InputError("--slurm and --tasks are for Slurm; add --executor slurm, or remove them")
    if arguments.executor == "slurm" and (arguments.share or arguments.verify or arguments.workers):
        raise InputError("--executor: slurm goes with none of --share, --verify and --workers; remove them")
    if arguments.verify and (arguments.share or arguments.workers):
        raise InputError("--verify: makes nothing; --verify goes with neither --share nor --workers; remove them")
    options = {}
    for given in arguments.slurm:
        name, equals, value = given.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z-]*", name) or not value or re.search(r"\s", value):
            raise InputError(f"--slurm: got {given!r}, expected an option of sbatch, as in partition=cpu")
        options[name] = value
    return options
