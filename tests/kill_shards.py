"""Makes shards in processes that are killed with -9 at random moments. A script, so that it forks without threads.

    python kill_shards.py CORPUS SHARDS KILLS WORKERS

Prints how many of the kills met a process that was at work, and what it died of if it was not the kill.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data import make_shards as making
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.readers import parts as cutting
from lowrank_clone.data.sharding import job as jobs


def make(corpus: str, shards: str, workers: int) -> None:
    jobs.split_source = lambda source: cutting.split_source(source, 20_000)
    config = DataConfig(sources=[{"path": corpus}], shards=shards)
    making.make_shards([("data.sources.0", config.sources[0])], config, tiny_tokenizer(), 258, workers=workers)


def begin(corpus: str, shards: str, workers: int) -> int:
    if child := os.fork():
        return child
    with contextlib.suppress(BaseException):
        make(corpus, shards, workers)
        os._exit(0)
    os._exit(1)


def records(shards: str) -> int:
    return len(list(Path(shards).glob("*/*.json")))


def main() -> None:
    corpus, shards, kills, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    began = time.monotonic()
    assert os.waitpid(begin(corpus, shards + "-whole", workers), 0)[1] == 0
    whole = time.monotonic() - began
    rng, met = random.Random(0), 0
    for _ in range(kills):
        child = begin(corpus, shards, workers)
        # Each goes on where the one before was killed; several workers take most of the time to start.
        if workers > 1:
            before = records(shards)
            while (
                records(shards) == before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0.02, 1.5) * whole / kills)
        os.kill(child, signal.SIGKILL)
        met += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert os.waitpid(begin(corpus, shards, workers), 0)[1] == 0
    print(met)


if __name__ == "__main__":
    main()
