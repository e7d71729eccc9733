"""Reading the shards of a source as one stream of tokens: all its documents joined, positions 0 to `tokens`.

Files are read where they are needed (`pread`) and not mapped: the pages that a mapping has touched count as memory of
the process, and a file that is cut short while it is mapped kills it. Processes share what they read in either case,
since it lies in the system's page cache.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import weakref
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..errors import InputError
from .sharding.records import Manifest, read_manifest

_U8 = np.dtype("<u8")
_AGAIN = "remove it and make it again with `lrc data RECIPE`, which keeps the other shards"
_OPEN_FILES = 64  # of a source at a time; there may be thousands of shards, and a process may open 1,024 files


class TokenSource:
    """The opened shards of one source. Opens files in the process that reads; what is pickled is the manifest.

    Attributes:
        folder: Where the shards lie.
        manifest: What is in them.
        tokens: Of all documents.
        documents: All with at least one token.
        digest: Of the checksums of all shards in order: equal for equal ids, documents and masks.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.documents = sum(shard.documents for shard in manifest.shards)
        self._starts = [0, *accumulate(shard.tokens for shard in manifest.shards)]
        self.tokens = self._starts[-1]
        self.digest = _digest(manifest)
        self._handles: dict[Path, int] = {}
        weakref.finalize(self, _close, self._handles)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, start: int, stop: int) -> np.ndarray:
        """`[stop - start]` int64 ids of the stream.

        Raises:
            InputError: A shard was truncated or removed since it was opened.
        """
        found = np.empty(stop - start, np.int64)
        dtype = np.dtype(f"<u{self.manifest.token_bytes}")
        for shard, first, last, place in self._stretches(start, stop):
            found[place : place + last - first] = self._array(shard, ".ds", dtype, first, last)
        return found

    def masked(self, start: int, stop: int) -> np.ndarray:
        """`[stop - start]` bool: the tokens that are left out of the LM loss; none for a source without masks."""
        found = np.zeros(stop - start, bool)
        for shard, first, last, place in self._stretches(start, stop):
            if ".ds.masked" not in self.manifest.shards[shard].files:
                continue
            size = self.manifest.shards[shard].files[".ds.masked"].bytes // 8
            borders = _Numbers(self, shard, ".ds.masked", size)
            # Borders go up: begin, end, begin, end. The first that matters ends after `first`.
            low = bisect.bisect_right(borders, first) // 2 * 2
            high = -(-bisect.bisect_left(borders, last) // 2) * 2
            for begin, end in self._array(shard, ".ds.masked", _U8, low, high).reshape(-1, 2).tolist():
                found[place + max(begin, first) - first : place + min(end, last) - first] = True
        return found

    def ends(self) -> np.ndarray:
        """`[documents]` int64: the position after each document. Built on every call: 8 bytes a document."""
        parts = [
            self._array(i, ".ds.index", _U8, 0, shard.documents).astype(np.int64) + self._starts[i]
            for i, shard in enumerate(self.manifest.shards)
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def hashes(self) -> np.ndarray:
        """`[documents]` uint64: xxh3_64 of each document's text. Built on every call: 8 bytes a document."""
        parts = [self._array(i, ".ds.hash", _U8, 0, shard.documents) for i, shard in enumerate(self.manifest.shards)]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """`[starts]` int64: positions in `start` to `stop` at which a document begins, in order."""
        found = [np.empty(0, np.int64)]
        for shard, first, last, _ in self._stretches(start, stop):
            ends = _Numbers(self, shard, ".ds.index", self.manifest.shards[shard].documents)
            low, high = bisect.bisect_left(ends, first), bisect.bisect_left(ends, last)
            inside = self._array(shard, ".ds.index", _U8, low, high).astype(np.int64)
            found.append((inside if first > 0 else np.concatenate([[0], inside])) + self._starts[shard])
        return np.concatenate(found)

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(shard, first and last position in it, position in the answer) of what lies between two positions."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        shard, position = bisect.bisect_right(self._starts, start) - 1, start
        while position < stop:
            offset, last = self._starts[shard], min(stop, self._starts[shard + 1])
            if last > position:
                yield shard, position - offset, last - offset, position - start
            position, shard = last, shard + 1

    def _array(self, shard: int, suffix: str, dtype: np.dtype, first: int, last: int) -> np.ndarray:
        """`[last - first]` numbers of a file."""
        size = dtype.itemsize
        path = self.folder / (self.manifest.shards[shard].name + suffix)
        data = self._bytes(path, first * size, (last - first) * size)
        return np.frombuffer(data, dtype)

    def _bytes(self, path: Path, offset: int, count: int) -> bytes:
        pieces, done = [], 0
        try:
            handle = self._handle(path)
            while done < count and (piece := os.pread(handle, count - done, offset + done)):
                pieces.append(piece)
                done += len(piece)
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); {_AGAIN}") from error
        if done < count:
            raise InputError(f"{path} was truncated: it has {offset + done:,} bytes, expected more; {_AGAIN}")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _handle(self, path: Path) -> int:
        """An open file; those that were not needed for longest are closed."""
        handle = self._handles.pop(path, None)
        if handle is None:
            handle = os.open(path, os.O_RDONLY)
            if len(self._handles) >= _OPEN_FILES:
                os.close(self._handles.pop(next(iter(self._handles))))
        self._handles[path] = handle
        return handle


class _Numbers(Sequence[int]):
    """The numbers of a file for `bisect`, each read when it is looked at."""

    def __init__(self, source: TokenSource, shard: int, suffix: str, count: int) -> None:
        self._source, self._shard, self._suffix, self._count = source, shard, suffix, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        assert isinstance(index, int)
        return int(self._source._array(self._shard, self._suffix, _U8, index, index + 1)[0])


def open_source(folder: Path, *, verify: bool = False) -> TokenSource:
    """Open the shards in a folder.

    Args:
        verify: Hold every file against its checksum, which reads them all: as long as the disk takes, and a second for
            each 5 GB that are in memory. Else this is done of files alone that were changed after their shard's record
            was written, and sizes are compared; that takes one `stat` a file.

    Raises:
        InputError: A file is missing, truncated or altered, or another version wrote the shards.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        if damaged := shard.damage(folder, verify):
            raise InputError(f"{damaged}; {_AGAIN}")
    return TokenSource(folder, manifest)


def _digest(manifest: Manifest) -> str:
    digest = hashlib.sha256(f"{manifest.token_bytes}".encode())
    for shard in manifest.shards:
        for suffix, file in sorted(shard.files.items()):
            digest.update(f" {suffix} {file.xxh3_128}".encode())
    return digest.hexdigest()


def _close(handles: dict[Path, int]) -> None:
    for handle in handles.values():
        os.close(handle)
    handles.clear()
