"""One process at a time makes the shards of a folder; another one waits, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ...errors import InputError
from .parts import cannot_write


@contextmanager
def locked(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be. It is free again when its process ends, however it does.

    Raises:
        InputError: The folder can't be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"waiting for another process, which makes the shards in {folder}")
            lock.acquire()
    except OSError as error:
        raise cannot_write(folder, error) from error
    except NotImplementedError as error:
        raise InputError(
            f"{folder} lies in a file system without locks; set data.shards to a folder on another one"
        ) from error
    try:
        yield
    finally:
        lock.release()
