"""What the data costs: tokenising beside the tokenizer itself, disk, the loader's rate, and memory over many shards.

    python benchmarks/data.py                          # all parts; needs the demo's teacher, or --tokenizer
    python benchmarks/data.py --tokenizer path/to/it   # another tokenizer, for instance Qwen3's
    python benchmarks/data.py --part rate --megabytes 64 --threads 2
    python benchmarks/data.py --part memory --gigabytes 5 --scratch /big/disk

rate     A shard of text, in turns with `tokenizers`' own `encode_batch` of the same documents, one thread each: the
         ratio of their times, round after round, so that a busy machine slows both. A round of ours is all that
         `lrc data` does of a part: checksums, reading JSON, tokenising, hashing, writing.
parallel Shards of text by as many worker processes as `encode_batch` of the same documents has threads, the start of
         the processes included; worth its name from some 64 MB for each process on (--megabytes).
disk     Bytes a token of everything that is kept, for documents of several mean lengths.
loader   Blocks a second of random rows, beside what training SmolLM2-135M takes on the same kind of machine.
step     Time of an optimiser step of `CloneTrainer` on shards, in turns with the same blocks in memory; the model is
         small, so that reading weighs more than in any real run.
memory   Resident memory while every block of a large folder of made-up shards is read once in random order.

Figures go to data-<name>.json beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import pydoc_data.topics
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PARTS = ("rate", "parallel", "disk", "loader", "step", "memory")
LENGTH = 2048


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="one or more of the parts; all unless given")
    parser.add_argument("--tokenizer", help="folder of a tokenizer; the demo's teacher's unless given")
    parser.add_argument("--text", nargs="*", default=[], help="plain text files; Python's help topics unless given")
    parser.add_argument("--megabytes", type=float, default=32, help="text for `rate` and `parallel` (default 32)")
    parser.add_argument("--gigabytes", type=float, default=5, help="shards for `memory` (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scratch", help="folder for what is written and removed again; the system's unless given")
    parser.add_argument("--name", help="of the JSON file; the tokenizer's unless given")
    return parser.parse_args()


def load(path: str | None) -> tuple[Any, int, str]:
    """(tokenizer, vocabulary, name)."""
    from transformers import AutoTokenizer

    from lowrank_clone.run.demo_teacher import teacher_file

    if path is None:
        file = teacher_file()
        tokenizer, name = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), "smollm2"
    else:
        tokenizer, name = AutoTokenizer.from_pretrained(path), Path(path).name
    return tokenizer, len(tokenizer), name


def documents(files: list[str], size: float, mean: int, seed: int = 0) -> list[str]:
    """About `size` bytes of documents of about `mean` characters: paragraphs with every tenth word another one."""
    texts = [Path(file).read_text(errors="replace") for file in files] or list(pydoc_data.topics.topics.values())
    words = " ".join(texts).split()
    rng, found, total = random.Random(seed), [], 0
    while total < size:
        count, start = max(1, round(rng.lognormvariate(0, 0.7) * mean / 8)), rng.randrange(len(words))
        chosen = [words[(start + i) % len(words)] if rng.random() < 0.9 else rng.choice(words) for i in range(count)]
        lines = [" ".join(chosen[i : i + 15]) for i in range(0, count, 15)]
        found.append("\n".join(lines))
        total += len(found[-1].encode())
    return found


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def job_of(texts: list[str], path: Path, folder: Path, tokenizer: Any, vocabulary: int) -> Any:
    """The job of a file of these documents, which is a single part."""
    from lowrank_clone.data.config import DataConfig
    from lowrank_clone.data.make_shards import make_jobs

    write(path, texts)
    config = DataConfig(sources=[{"path": str(path)}], shards=str(folder))
    (job,) = make_jobs([("data.sources.0", config.sources[0])], config, tokenizer, vocabulary)
    return job


def shards(path: Path, folder: Path, tokenizer: Any, vocabulary: int, workers: int = 1) -> Any:
    """The opened shards of a file or folder."""
    from lowrank_clone.data.config import DataConfig
    from lowrank_clone.data.make_shards import make_shards

    config = DataConfig(sources=[{"path": str(path)}], shards=str(folder))
    keyed = [("data.sources.0", config.sources[0])]
    return make_shards(keyed, config, tokenizer, vocabulary, workers=workers, progress=False)[0]


def rate(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    from lowrank_clone.data.sharding.parts import make_shard

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rounds, size = [], 8e6
    for number in range(max(3, round(options.megabytes * 1e6 / size))):
        texts = documents(options.text, size, 3000, number)
        job = job_of(texts, scratch / f"round{number}.jsonl", scratch / "rate", tokenizer, vocabulary)
        job.folder.mkdir(parents=True)
        began, cpu = time.perf_counter(), time.process_time()
        tokens = sum(len(encoding.ids) for encoding in tokenizer.backend_tokenizer.encode_batch(texts))
        middle, middle_cpu = time.perf_counter(), time.process_time()
        make_shard(job, 0)
        ended, ended_cpu = time.perf_counter(), time.process_time()
        rounds.append(
            {
                "tokens": tokens,
                "library_seconds": middle - began,
                "our_seconds": ended - middle,
                "library_cpu_seconds": middle_cpu - cpu,
                "our_cpu_seconds": ended_cpu - middle_cpu,
            }
        )
    kept = rounds[1:]  # the first one warms up
    return {
        "rounds": rounds,
        "threads": 1,
        "ratio": statistics.median(r["library_seconds"] / r["our_seconds"] for r in kept),
        "ratio_of_cpu_time": statistics.median(r["library_cpu_seconds"] / r["our_cpu_seconds"] for r in kept),
        "our_tokens_per_second": statistics.median(r["tokens"] / r["our_seconds"] for r in kept),
        "our_tokens_per_cpu_second": statistics.median(r["tokens"] / r["our_cpu_seconds"] for r in kept),
    }


def parallel(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = documents(options.text, options.megabytes * 1e6, 3000)
    count = 4 * options.threads  # files, each a part of its own unless it is small
    for number in range(count):
        write(scratch / "text" / f"{number}.jsonl", texts[number::count])
    began, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), 2000):  # all encodings at once would fill the memory
        tokens += sum(len(found.ids) for found in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2000]))
    middle = time.perf_counter()
    source = shards(scratch / "text", scratch / "shards", tokenizer, vocabulary, options.threads)
    ended = time.perf_counter()
    assert source.tokens == tokens + len(texts), (source.tokens, tokens, len(texts))  # an eos for each document
    return {
        "threads": options.threads,
        "tokens": tokens,
        "shards": len(source.manifest.shards),
        "ratio": (middle - began) / (ended - middle),
        "our_tokens_per_second": tokens / (ended - middle),
    }


def disk(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    found = []
    for mean in (60, 250, 700, 1500, 4000):
        path = scratch / f"disk{mean}.jsonl"
        write(path, documents(options.text, 4e6, mean))
        source = shards(path, scratch / "disk", tokenizer, vocabulary)
        kept = sum(file.stat().st_size for file in source.folder.rglob("*") if file.is_file())
        found.append({"tokens_per_document": source.tokens / source.documents, "bytes_per_token": kept / source.tokens})
    width = 2 if vocabulary < 2**16 else 4
    # Each document's end and hash take 16 bytes.
    return {"bytes_of_an_id": width, "by_length": found, f"below_{width + 0.1}_from_tokens_per_document": 16 / 0.1}


def blocks_of(source: Any, length: int = LENGTH) -> Any:
    """All its tokens as contiguous blocks in random order."""
    import numpy as np

    from lowrank_clone.data.blocks import PackedBlocks
    from lowrank_clone.data.packing import pack

    packing = pack(source, np.array([[0, source.tokens]]), length, False, "contiguous")
    order = np.random.default_rng(0).permutation(len(packing))
    return PackedBlocks([(source, packing)], order, length=length)


def made_up(folder: Path, size: float, vocabulary: int) -> Any:
    """`size` bytes of shards of random ids, in documents of 500 tokens on average."""
    import numpy as np

    from lowrank_clone.data.sharding.records import Manifest, ShardRecord
    from lowrank_clone.data.sharding.writer import ShardWriter
    from lowrank_clone.data.shards import open_source

    folder.mkdir(parents=True)
    rng, records, width = np.random.default_rng(0), [], 2 if vocabulary < 2**16 else 4
    for number in range(max(1, round(size / 64e6))):
        writer = ShardWriter(folder, f"{number:05d}", width, masks=False)
        while writer.tokens * width < min(size, 64e6):
            ids = rng.integers(0, vocabulary, 500_000, np.uint32)
            for part in np.array_split(ids, np.sort(rng.integers(1, len(ids), 999))):
                if len(part):
                    writer.write(part, int(part[0]), None)
        records.append(writer.finish(ShardRecord(f"{number:05d}", "", 0, 0, {})))
    Manifest(width, vocabulary, "made up", None, {}, tuple(records)).write(folder)
    return open_source(folder)


def loader(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    blocks = blocks_of(made_up(scratch / "loader", 2e8, vocabulary))
    count, rates = min(4000, len(blocks)), []
    for start in range(3):
        began = time.perf_counter()
        for row in range(start, count):
            blocks[row]["input_ids"]
        rates.append((count - start) / (time.perf_counter() - began))
    speed = json.loads((FOLDER / "speed-smollm2-135m-cpu.json").read_text())
    training = max(case["tokens"] * r["run"] / r["seconds"] for case in speed.values() for r in case["rounds"])
    ours = statistics.median(rates)
    return {
        "blocks_per_second": ours,
        "tokens_per_second": ours * LENGTH,
        "training_tokens_per_second": training,
        "times_training": ours * LENGTH / training,
    }


def step(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from lowrank_clone import CloneArguments, CloneModel, CloneTrainer

    class Clock(TrainerCallback):
        """Seconds from the end of a step to the end of the next, so with reading its rows; of all threads the CPU's."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append((time.perf_counter(), time.process_time()))

        def medians(self) -> tuple[float, float]:
            wall, cpu = ([b - a for a, b in itertools.pairwise(t)] for t in zip(*self.ends, strict=True))
            return statistics.median(wall), statistics.median(cpu)

    small, steps = 2048, 16
    shards = blocks_of(made_up(scratch / "step", 2e7, small), 512)
    rows = {"shards": shards, "memory": [shards[i] for i in range(len(shards))]}
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.set_num_threads(options.threads)
    teacher = LlamaForCausalLM(LlamaConfig(vocab_size=small, **sizes)).eval()
    rounds = []
    for _ in range(5):
        found = {}
        for kind, data in rows.items():
            clock = Clock()
            settings: dict[str, Any] = {"max_steps": steps, "save_strategy": "no", "logging_steps": steps}
            settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2}
            args = CloneArguments(output_dir=str(scratch), **settings)
            CloneTrainer(CloneModel(teacher, 128), args, train_dataset=data, callbacks=[clock]).train()
            found[kind] = clock.medians()
        rounds.append(found)
    ratios = [[r["shards"][i] / r["memory"][i] for r in rounds] for i in range(2)]
    return {
        "seconds_on_shards": statistics.median(r["shards"][0] for r in rounds),
        "seconds_in_memory": statistics.median(r["memory"][0] for r in rounds),
        "ratio": statistics.median(ratios[0]),
        "ratio_of_cpu_time": statistics.median(ratios[1]),
        "rounds": rounds,
    }


def resident() -> int:
    """Bytes of this process in memory, those of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(options: argparse.Namespace, tokenizer: Any, vocabulary: int, scratch: Path) -> dict[str, Any]:
    source = made_up(scratch / "memory", options.gigabytes * 1e9, vocabulary)
    before = resident()
    blocks = blocks_of(source)
    seen = []
    for row in range(len(blocks)):
        blocks[row]["input_ids"]
        if row % max(1, len(blocks) // 100) == 0:
            seen.append(resident())
    size = sum(file.stat().st_size for file in source.folder.iterdir())
    return {
        "bytes_of_shards": size,
        "shards": len(source.manifest.shards),
        "blocks": len(blocks),
        "resident_before_packing": before,
        "resident_first": seen[0],
        "resident_last": seen[-1],
        "rise": max(seen) - before,
    }


def main() -> None:
    options = arguments()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    tokenizer, vocabulary, name = load(options.tokenizer)
    file = FOLDER / f"data-{options.name or name}.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    figures["machine"] = {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "vocabulary": vocabulary,
    }
    for part in options.part or PARTS:
        scratch = Path(tempfile.mkdtemp(dir=options.scratch))
        try:
            figures[part] = globals()[part](options, tokenizer, vocabulary, scratch)
        finally:
            shutil.rmtree(scratch)
        print(part, json.dumps({k: v for k, v in figures[part].items() if k != "rounds"}, indent=1), flush=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
