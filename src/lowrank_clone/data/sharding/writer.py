"""Writing one shard, with datatrove's `TokenizedFile` for the ids and the ends of documents."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from datatrove.io import DataFolder
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from fsspec.implementations.local import LocalFileSystem

from .records import FileState, ShardRecord, checksum


class ShardWriter:
    """Writes documents into a shard, in a folder of its own, and moves its files into place when it is finished.

    A shard that was begun and not finished is never seen by a reader, whatever happens to the process.

    Args:
        folder: Where the shard goes.
        name: `00000`.
        token_bytes: 2 or 4.
        masks: Whether stretches of documents are left out of the LM loss.
    """

    def __init__(self, folder: Path, name: str, token_bytes: int, masks: bool) -> None:
        self._folder, self._name, self._masks = folder, name, masks
        self._dtype = np.dtype(f"<u{token_bytes}")
        self._draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        place = DataFolder(str(self._draft), fs=LocalFileSystem())
        self._file = TokenizedFile(place, f"{name}.ds", token_size=token_bytes)
        self._hashes: list[int] = []
        self._spans: list[np.ndarray] = []

    @property
    def tokens(self) -> int:
        """Tokens that were written."""
        return self._file.write_idx

    @property
    def documents(self) -> int:
        """Documents that were written."""
        return len(self._hashes)

    def write(self, ids: np.ndarray, content: int, masked: np.ndarray | None) -> None:
        """One document.

        Args:
            ids: `[tokens]` at least one, each below the vocabulary's size.
            content: Hash of its text.
            masked: `[spans, 2]` half-open stretches of it that are left out of the LM loss, in order; None for none.
        """
        assert len(ids) > 0 and (self._masks or masked is None)
        if masked is not None:
            self._spans.append(np.asarray(masked, np.uint64) + np.uint64(self.tokens))
        self._file.write_bytes(ids.astype(self._dtype, copy=False).tobytes())
        self._hashes.append(content)

    def finish(self, record: ShardRecord) -> ShardRecord:
        """Move the files into place and write the record, which makes the shard count.

        Args:
            record: Without tokens, documents and files, which the writer fills in.

        Returns:
            The record as it was written.
        """
        self._file.close()
        arrays = {".ds.hash": np.array(self._hashes, "<u8")}
        if self._masks:
            arrays[".ds.masked"] = np.concatenate([np.empty((0, 2), "<u8"), *self._spans])
        for suffix, array in arrays.items():
            array.astype("<u8", copy=False).tofile(self._draft / (self._name + suffix))
        files = {}
        for suffix in (".ds", ".ds.index", *arrays):
            path = self._draft / (self._name + suffix)
            files[suffix] = FileState(_flushed(path), checksum(path))
        whole = replace(record, tokens=self.tokens, documents=self.documents, files=files)
        for suffix in files:
            name = self._name + suffix
            os.replace(self._draft / name, self._folder / name)
        whole.write(self._folder)
        self._draft.rmdir()
        return whole

    def abandon(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # a full disk fails once more when the last bytes are written out
            self._file.tokens_file.close()
        shutil.rmtree(self._draft, ignore_errors=True)


def _flushed(path: Path) -> int:
    """Bytes of a file, once they are on the disk, so that a power cut leaves no record of what is not there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)
