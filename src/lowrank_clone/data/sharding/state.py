"""What there is of a source's shards, and what has to be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import InputError, count_of
from ..check import named
from .inputs import newest_file
from .job import SourceJob
from .parts import fitting_record, in_doubt, is_same_text
from .records import MANIFEST_FILE, read_manifest, read_record


@dataclass(frozen=True)
class State:
    """The shards of a source, by what has to be done with them.

    missing, changed, doubtful: Parts without a shard; parts with files that have other names, sizes or times than when
    their shard was made; parts with files that were changed so shortly before that they may have changed once more.
    damage: What is wrong with shards that were whole once. complete: Nothing is to be done.
    """

    job: SourceJob
    missing: tuple[int, ...]
    changed: tuple[int, ...]
    doubtful: tuple[int, ...]
    damage: tuple[str, ...]
    complete: bool

    @property
    def todo(self) -> list[int]:
        """Parts that are made, or looked at byte for byte, in order."""
        return sorted([*self.missing, *self.changed, *self.doubtful])

    def other_text(self) -> str | None:
        """A file of a part that is another text than its shard was made of, or the source's name if parts are new."""
        if self.missing or (self.job.folder / f"{self.job.name(len(self.job.parts))}.json").exists():
            return self.job.source.path
        for index in (*self.changed, *self.doubtful):
            if not is_same_text(self.job, index):
                return newest_file(self.job.parts[index])
        return None

    def describe(self, say: Callable[[str], None]) -> None:
        """Say what will be made, and why what is there can't be used."""
        job, count = self.job, len(self.job.parts)
        for damage in self.damage:
            say(f"{job.key}: {damage}; it is made again")
        if self.changed:
            say(
                f"{job.key}: {newest_file(job.parts[self.changed[0]])} was touched since its text was tokenised; its "
                f"shards ({len(self.changed):,} of {count:,}) are made again where it is another text"
            )
        if len(self.missing) == count:
            say(f"{job.key}: tokenising {job.source.path} into {job.folder}, {count_of(count, 'shard')}")
        elif self.missing:
            say(f"{job.key}: {len(self.missing):,} of {count:,} shards in {job.folder} are still to be made")


def look_at(job: SourceJob, mend: bool) -> State:
    """Look at the shards of a source: at names, sizes and times, and into what was written to since.

    Raises:
        InputError: A shard was truncated or altered since they were complete, unless `mend`; or a file can't be read.
    """
    with named(job.key):
        missing, changed, doubtful, damaged = [], [], [], []
        whole = (job.folder / MANIFEST_FILE).exists()
        for index in range(len(job.parts)):
            record = read_record(job.folder / f"{job.name(index)}.json")
            if record is None or record.key != job.part_key(index):
                missing.append(index)
            elif damage := record.damage(job.folder, verify=False):
                # Without a manifest a run was killed, perhaps between the files of a shard.
                missing.append(index)
                damaged += [damage] if whole else []
            elif fitting_record(job, index) is None:
                changed.append(index)
            elif in_doubt(job, index):
                doubtful.append(index)
        if damaged and not mend:
            raise InputError(f"{damaged[0]}; `lrc data RECIPE` makes it again and keeps the other shards")
        ready = whole and not missing and not changed and not doubtful and _is_listed(job)
        return State(job, tuple(missing), tuple(changed), tuple(doubtful), tuple(damaged), ready)


def _is_listed(job: SourceJob) -> bool:
    """Whether the manifest is that of the records; another number of parts, or a kill, leaves one that is not."""
    try:
        listed = read_manifest(job.folder)
    except InputError:
        return False
    return listed == job.manifest([record for i in range(len(job.parts)) if (record := fitting_record(job, i))])
