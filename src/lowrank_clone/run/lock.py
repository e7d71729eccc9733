"""One process at a time writes into a run's folder. Imports no PyTorch.

The lock is the system's, on the file `.lock` in the folder: it ends with the process that took it, whatever ends that,
and is not inherited by workers that live on for a moment. A file that is left behind is no obstacle. It says who holds
the lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ..errors import InputError, one_line
from .output_folder import LOCK

_log = logging.getLogger("lowrank_clone")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that is there for this process.

    Raises:
        InputError: Another process holds it; it says which.
    """
    path = folder / LOCK
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = one_line(os.read(number, 200).decode("utf-8", "replace"), 200) or "another process"
            os.close(number)
            raise InputError(
                f"training.output_dir: `{folder}` is in use by {holder}; wait until it ends, or give another folder"
            ) from None
        except OSError as error:  # a file system that has no locks
            _log.warning("%s can't be locked: %s; see to it that no other process uses this folder", folder, error)
        if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
            break
        os.close(number)  # its holder deleted it in this moment
    try:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        os.ftruncate(number, 0)
        os.write(number, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)
