"""A command in a process of its own that kills itself at its n-th file operation in a folder, as `kill -9` would."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What Python tells of before it does it. Libraries written in C and Rust tell nothing, but these come before and after.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.fsync")


class FileOperations:
    """Counts the operations that change something below `folder`, and ends the process before the `last`-th one.

    Args:
        torn: Whether what was written and not synchronised is cut to its half then, as after a loss of power.
    """

    def __init__(self, folder: Path, last: int | None, torn: bool = False) -> None:
        self.folder, self.last, self.torn = str(folder.resolve()), last, torn
        self.seen: list[str] = []
        self._synced: set[str] = set()
        self._begun = time.time_ns()
        fsync = os.fsync

        def told(fd: Any) -> None:
            number = fd if isinstance(fd, int) else fd.fileno()
            place = os.readlink(f"/proc/self/fd/{number}")
            self("os.fsync", (place,))
            fsync(fd)
            self._synced.add(place)

        os.fsync = told
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's hook."""
        if event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        place = os.path.abspath(os.fsdecode(arguments[0]))
        if not place.startswith(self.folder):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND)):
            return
        self.seen.append(f"{event} {place[len(self.folder) :]}")
        if len(self.seen) == self.last:
            if self.torn:
                self._tear()
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open":
            self._synced.discard(place)
        if event == "os.rename":  # of a file, or of a folder with all that is in it
            target = os.path.abspath(os.fsdecode(arguments[1]))
            moved = {old for old in self._synced if old == place or old.startswith(f"{place}/")}
            self._synced |= {target + old[len(place) :] for old in moved}

    def _tear(self) -> None:
        for root, _, names in os.walk(self.folder):
            for place in (os.path.join(root, name) for name in names):
                state = os.stat(place)
                if state.st_mtime_ns >= self._begun and place not in self._synced:
                    with open(place, "rb+") as file:
                        file.truncate(state.st_size // 2)


def in_a_child(
    work: Callable[[], int], folder: Path, last: int | None = None, torn: bool = False
) -> tuple[int, list[str]]:
    """What `work` returned in a fork of this process, or -9; and the operations of a child that ended by itself."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
            operations = FileOperations(folder, last, torn)
            code = work()
            with os.fdopen(write, "w") as pipe:
                pipe.write("\n".join(operations.seen))
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        seen = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), seen
