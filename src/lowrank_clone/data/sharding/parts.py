"""One part of a source becomes one shard: the same bytes whoever makes it, and however often it was begun before."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import InputError
from ..check import named
from ..readers.documents import Document
from ..readers.reading import read_documents
from .inputs import content_of, newest_file, stamps_of
from .job import SourceJob
from .records import ShardRecord, read_record
from .writer import ShardWriter

_BATCH = 4096  # documents that are tokenised in one call
_CHARACTERS = 4 * 2**20  # of them, about
_SHARD_FILE = re.compile(r"(\d{5,})\.(ds|ds\.index|ds\.hash|ds\.masked|json)")
_DRAFT = re.compile(r"\.(\d{5,}-.*|(\d{5,}|manifest)\.json\.\d+)")
_DOUBT = 2 * 10**9  # nanoseconds; a file that was changed so shortly before it was read may change under the same times


def fitting_record(job: SourceJob, index: int) -> ShardRecord | None:
    """The record of a part's shard if it is whole and its files have the names, sizes and times that they had.

    Raises:
        InputError: A file of the source is gone.
    """
    record = _whole_record(job, index)
    if record is None:
        return None
    with _reading():
        return record if stamps_of(job.parts[index]).digest == record.stamps else None


def _whole_record(job: SourceJob, index: int) -> ShardRecord | None:
    """The record of a part's shard that was made in this way and whose own files are whole."""
    record = read_record(job.folder / f"{job.name(index)}.json")
    if record is None or record.key != job.part_key(index) or record.damage(job.folder, verify=False):
        return None
    return record


def in_doubt(job: SourceJob, index: int) -> bool:
    """Whether a file of a part was changed so shortly before its shard was made that it may have changed after it."""
    with _reading():
        made = (job.folder / f"{job.name(index)}.json").stat().st_mtime_ns
        return stamps_of(job.parts[index]).newest + _DOUBT > made


def is_same_text(job: SourceJob, index: int) -> bool:
    """Whether a part's files are, byte for byte, what its shard was made of."""
    record = read_record(job.folder / f"{job.name(index)}.json")
    with _reading():
        return record is not None and content_of(job.parts[index]) == record.content


def _kept(job: SourceJob, index: int) -> bool:
    """Whether a part's shard is there and its files are, byte for byte, what it was made of."""
    record = _whole_record(job, index)
    if record is None:
        return False
    with _reading():
        stamps = stamps_of(job.parts[index])
        if content_of(job.parts[index]) != record.content:
            return False
    with _writing(job):
        replace(record, stamps=stamps.digest).write(job.folder)
    return True


def finish_source(job: SourceJob, *, tidy: bool) -> None:
    """Write the manifest if all shards of a source are there.

    Args:
        tidy: Remove what belongs to none of them; nobody else may be at work in the folder.
    """
    records = []
    for index in range(len(job.parts)):
        record = fitting_record(job, index)
        if record is None:
            return
        records.append(record)
    names = {record.name for record in records}
    with _writing(job):
        for path in job.folder.iterdir() if tidy else ():
            found = _SHARD_FILE.fullmatch(path.name)
            if _DRAFT.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
            elif _DRAFT.fullmatch(path.name) or (found and found[1] not in names):
                path.unlink()
        job.manifest(records).write(job.folder)


def remove_drafts(job: SourceJob, index: int) -> None:
    """Remove what is there of a shard that was begun and is not finished."""
    for draft in job.folder.glob(f".{job.name(index)}-*"):
        shutil.rmtree(draft, ignore_errors=True)


def make_shard(job: SourceJob, index: int, tell: Callable[[int], None] = lambda _: None) -> bool:
    """Make the shard of a part, unless it is there and fits.

    Args:
        tell: Is called with the tokens that were written since its last call.

    Returns:
        Whether it was made.

    Raises:
        InputError: A bad row, a damaged file, or a folder that can't be written; it names the source's key.
    """
    with named(job.key):
        if _kept(job, index):
            return False
        part, name = job.parts[index], job.name(index)
        remove_drafts(job, index)
        with _reading():
            before, content = stamps_of(part), content_of(part)
        with _writing(job):
            writer = ShardWriter(job.folder, name, job.empty.token_bytes, job.masks)
        try:
            record = _fill(job, index, writer, tell)
            with _reading():
                if stamps_of(part).digest != before.digest:
                    raise InputError(
                        f"path: {newest_file(part)} changed while it was read; begin again when it is complete, which "
                        "keeps the shards that were made"
                    )
            with _writing(job):
                writer.finish(replace(record, stamps=before.digest, content=content))
        except BaseException:
            writer.abandon()
            raise
        return True


def _fill(job: SourceJob, index: int, writer: ShardWriter, tell: Callable[[int], None]) -> ShardRecord:
    """Write a part's documents; the record without what the writer knows."""
    dropped: Counter[str] = Counter()
    first_error, spelt, complete, told = None, 0, True, 0
    for batch in _batches(read_documents(job.parts[index], job.source, job.strict)):
        for document in batch:
            if document.error is not None and (job.strict or document.fatal):
                raise InputError(document.error)
        for document, encoded in zip(batch, job.tokeniser.encode(batch), strict=True):
            error = document.error or encoded.error
            if error is not None:
                if job.strict:
                    raise InputError(error)
                dropped["malformed"] += 1
                first_error = first_error or error
            elif not len(encoded.ids):
                dropped[document.dropped or "blank"] += 1
            else:
                with _writing(job):
                    writer.write(encoded.ids, encoded.hash, encoded.masked if job.masks else None)
                spelt += encoded.spelt
                if job.limit is not None and writer.tokens >= job.limit:
                    complete = False
                    break
        tell(writer.tokens - told)
        told = writer.tokens
        if not complete:
            break
    key, left_out = job.part_key(index), dict(sorted(dropped.items()))
    return ShardRecord(job.name(index), key, 0, 0, {}, left_out, first_error, spelt, complete)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents in groups that are worth a call of the tokenizer and bounded in memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or "")
        if len(batch) >= _BATCH or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"path: {error.filename} cannot be read ({error.strerror}); expected an intact file that you may read"
        ) from error


@contextmanager
def _writing(job: SourceJob) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(job.folder, error) from error


def cannot_write(folder: Path, error: OSError) -> InputError:
    """A full disk, or a folder that may not be written, in one line."""
    return InputError(
        f"the shards in {folder} can't be written ({error.strerror or error}); free some space there, or set "
        "data.shards to another folder; the shards that were finished are kept"
    )
