"""Opening files: regular ones alone, packed or not, and what a damaged one says."""

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from ...errors import InputError

UNREADABLE = (OSError, EOFError, zlib.error)
_BUFFER = 2**20  # bytes


def open_file(path: str) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz or .zst.

    Raises:
        InputError: It is no regular file: a pipe, a socket or a device may give no bytes ever, or no end of them.
        OSError: It can't be opened.
    """
    return unpacked(open_raw(path), path)


def open_raw(path: str) -> BinaryIO:
    """The bytes of a file as they are on disk.

    Raises:
        InputError: It is no regular file.
        OSError: It can't be opened.
    """
    # Without blocking: opening a pipe that nobody writes to would wait for ever.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InputError(f"path: `{path}` is no regular file; expected a file, a folder or a glob of files")
    return os.fdopen(number, "rb", buffering=_BUFFER)


def unpacked(raw: BinaryIO, path: str) -> BinaryIO:
    """What a file of this name holds, where `raw` is what is on disk."""
    name = path.lower()
    if name.endswith((".gz", ".zst")) and os.fstat(raw.fileno()).st_size == 0:
        raw.close()
        raise EOFError("it is empty, which no packed file is")
    if name.endswith(".gz"):
        packed = gzip.GzipFile(fileobj=raw, mode="rb")
        packed.myfileobj = raw  # type: ignore[assignment]  # what it closes when it is closed
        return cast(BinaryIO, packed)
    if name.endswith(".zst"):
        import pyarrow as pa

        # Of the decoders at hand the one that tells a file that breaks off from one that ends.
        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, _BUFFER))
    return raw


def error_reason(error: BaseException) -> str:
    """The type and text of a library's error, for the brackets of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def unreadable(path: str, error: BaseException) -> str:
    """The message for a file that can't be read."""
    return f"path: {path}: cannot be read ({error_reason(error)}); expected an intact file that you may read"


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn what a damaged file raises into one line.

    Raises:
        InputError: It names the field `path`.
    """
    try:
        yield
    except UNREADABLE as error:
        raise InputError(unreadable(path, error)) from error
