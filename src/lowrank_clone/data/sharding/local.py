"""datatrove's local executor in a process of its own: its logs go to a file, and it ends when who started it does.

python -m lowrank_clone.data.sharding.local FOLDER TASKS WORKERS     where FOLDER holds the work that was saved
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from datatrove.io import DataFolder
from fsspec.implementations.local import LocalFileSystem

from ...errors import InputError
from .tasks import MakeShards, Work, raise_first_error

LOG_FILE = "log.txt"
_PACKAGE_ROOT = Path(__file__).parents[3]
_POLL = 0.5  # seconds
_LOST_FILE = "lost"  # is there where a worker was killed


def run_local(work: Work, folder: Path, workers: int, look: Callable[[], None]) -> None:
    """Make the shards with several processes.

    Args:
        folder: For what the processes exchange.
        look: Is called a few times a second.

    Raises:
        InputError: Of the first part that can't be made; or a worker was killed.
    """
    work.save(folder)
    paths = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    # The workers are the parallelism, so each tokenizes with one thread.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", __name__, str(folder), str(len(work.todo)), str(workers)]
    with open(folder / LOG_FILE, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    assert process.stdin is not None
    with process.stdin:  # closing it ends the process, if it still runs
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
            look()
    process.wait()
    if process.returncode == 0:
        return
    raise_first_error(folder)
    if (folder / _LOST_FILE).exists():
        raise InputError(
            "a worker process was killed, as a system does that runs out of memory; start again with a smaller "
            "data.num_proc, which keeps the shards that were finished"
        )
    log_text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"the workers ended with code {process.returncode}:\n{log_text[-5000:]}")


def main() -> None:
    """Run the work in a folder to its end."""
    import multiprocess
    from datatrove.executor import LocalPipelineExecutor

    folder, tasks, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_with_a_worker, args=(folder, workers), daemon=True).start()
    multiprocess.set_start_method("forkserver")  # a fork of a process with threads may find locks held
    # The workers are copies of a process that has imported everything once.
    multiprocess.get_context("forkserver").set_forkserver_preload([f"{__package__}.parts"])
    LocalPipelineExecutor(
        [MakeShards(folder, alone=False)],
        tasks=tasks,
        workers=workers,
        logging_dir=DataFolder(os.path.join(folder, "datatrove"), fs=LocalFileSystem()),
        skip_completed=False,
    ).run()


def _end_with_parent() -> None:
    """Kill this process and its workers when the process that started it is gone, however it went."""
    while os.read(0, 1):  # not `sys.stdin`, whose lock a forked process would find held
        pass
    os.killpg(0, signal.SIGKILL)


def _end_with_a_worker(folder: str, workers: int) -> None:
    """Kill all when a worker was killed: the pool would start another, and wait forever for the lost one's answer."""
    import multiprocess

    first: set[int] = set()
    while True:
        time.sleep(_POLL)
        now = {child.pid for child in multiprocess.active_children() if "PoolWorker" in child.name}
        if len(first) < workers:
            first = now
        elif now - first:
            Path(folder, _LOST_FILE).touch()
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
