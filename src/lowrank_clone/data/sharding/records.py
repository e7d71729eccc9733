"""What is written about shards: a record beside each one, and the manifest of the folder, which is written last.

00000.ds         token ids, little-endian uint16 where the vocabulary is below 65,536, else uint32
00000.ds.index   end of each document, in tokens of this shard, little-endian uint64 (datatrove's format)
00000.ds.hash    xxh3_64 of each document's text, little-endian uint64
00000.ds.masked  pairs of token positions, little-endian uint64; only where some tokens are left out of the LM loss
00000.json       the shard's record
manifest.json    all records in order, the source, and fingerprints of tokenizer and template
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import xxhash

from ...errors import InputError, one_line

FORMAT = 1
MANIFEST_FILE = "manifest.json"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class FileState:
    """A file of a shard, as it was when it was complete."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class ShardRecord:
    """One shard: what is in it and what was left out."""

    name: str
    key: str
    """What it was made of and how, apart from what the files contain."""
    tokens: int
    documents: int
    files: dict[str, FileState]
    """By what stands behind the name: `.ds`, `.ds.index`, `.ds.hash`, and `.ds.masked` where there is one."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents that were left out, by reason."""
    first_error: str | None = None
    spelt: int = 0
    """Documents in whose text special tokens are spelt out, and stay text."""
    complete: bool = True
    """False where reading stopped because enough tokens were there."""
    stamps: str = ""
    """Digest of names, sizes and times of the files it was made of; empty where those can't be trusted."""
    content: str = ""
    """Digest of the bytes it was made of; empty for the Hub, whose revision is in the folder's key."""

    def write(self, folder: Path) -> None:
        """Write it in one step; from then on the shard counts."""
        _write(folder / f"{self.name}.json", asdict(self))

    def damage(self, folder: Path, verify: bool) -> str | None:
        """The first thing that is wrong with the shard's files, or None.

        Files that were changed after the record was written are read and held against their checksums; with `verify`
        all are.
        """
        path = folder / f"{self.name}.json"
        try:
            sealed = path.stat().st_ctime_ns
            for suffix, expected in self.files.items():
                path = folder / (self.name + suffix)
                found = path.stat()
                if found.st_size != expected.bytes:
                    return f"{path} has {found.st_size:,} bytes, expected {expected.bytes:,}"
                if (verify or found.st_ctime_ns > sealed) and checksum(path) != expected.xxh3_128:
                    return f"{path} was altered: its checksum is not the one in {MANIFEST_FILE}"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} can't be read ({error.strerror})"
        return None


@dataclass(frozen=True)
class Manifest:
    """All shards of one source."""

    token_bytes: int
    """2 or 4."""
    vocab_size: int
    tokenizer: str
    """Fingerprint."""
    template: str | None
    """Fingerprint of the chat template; None where none is used."""
    source: dict[str, Any]
    """Fields of the source that decide the ids."""
    shards: tuple[ShardRecord, ...]
    revision: str | None = None
    """Commit of a Hub dataset."""
    licence: str | None = None
    """Of a Hub dataset, as its card says."""
    format: int = FORMAT

    @property
    def dropped(self) -> dict[str, int]:
        """Documents that were left out of all shards, by reason."""
        total: dict[str, int] = {}
        for shard in self.shards:
            for reason, count in shard.dropped.items():
                total[reason] = total.get(reason, 0) + count
        return total

    @property
    def first_error(self) -> str | None:
        """Of the first shard that has one."""
        return next((shard.first_error for shard in self.shards if shard.first_error is not None), None)

    @property
    def spelt(self) -> int:
        """Documents in whose text special tokens are spelt out, and stay text."""
        return sum(shard.spelt for shard in self.shards)

    @property
    def complete(self) -> bool:
        """Whether all of the source was read."""
        return all(shard.complete for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write it in one step."""
        _write(folder / MANIFEST_FILE, asdict(self))


def read_record(path: Path) -> ShardRecord | None:
    """The record in a file; None where there is none that can be read, so that its shard is made again."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        InputError: There is none, it is damaged, or another version wrote it.
    """
    path, again = folder / MANIFEST_FILE, "make them again with `lrc data RECIPE`"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"no complete shards in {folder}: {MANIFEST_FILE}, which is written last, is missing; {again}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); expected a file you may read") from error
    try:
        found = json.loads(text)
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version != FORMAT:
            raise InputError(f"{path} has format {version}, expected {FORMAT}; another version wrote it; {again}")
        return _MANIFEST.validate_python(found)
    except (pydantic.ValidationError, json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error, 200)}); remove it, and {again}") from error


def checksum(path: Path | str, start: int = 0, stop: int | None = None) -> str:
    """xxh3_128 of the bytes from `start` to `stop` of a file, in hex; 5 GB/s and more where the disk gives as much."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        left = _CHUNK if stop is None else stop - start
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= 0 if stop is None else len(chunk)
    return digest.hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


_RECORD = pydantic.TypeAdapter(ShardRecord)
_MANIFEST = pydantic.TypeAdapter(Manifest)
