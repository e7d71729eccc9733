"""Time per token and peak memory of Low-Rank Clone beside what it must be compared with, as ratios of one run.

    python benchmarks/speed.py                       # SmolLM2's shape on the CPU: all cases and the table
    python benchmarks/speed.py --group accumulated   # one part of them
    python benchmarks/speed.py --report              # only the table and the figure, from the raw figures
    python benchmarks/speed.py --profile f           # where one micro-batch of a case spends its time, by operator

Every case lives in a process of its own, so that its peak memory is its own; the processes take turns, one step each
and round after round, so that a machine that slows down slows all of them. Figures are medians over the rounds in which
other processes left the machine alone, as far as there are any. A step is forward, backward and AdamW on `accumulation`
micro-batches, and comes after another one, as in training. Memory is the peak of one step (resident set on the CPU,
allocated on a GPU) above what was there before the first: weights, but neither gradients nor optimiser states. Weights
are random.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "config": {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 96,
            "vocab_size": 128,
            "tie_word_embeddings": True,
        },
        "student": 32,
    },
    "smollm2-135m": {
        "config": {
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
        "student": 384,
    },
    "llama-3.2-3b": {
        "config": {
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 8192,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        "student": 1536,
    },
    # Qwen2.5's biases are left out, so that the reference, which knows Llama only, runs it too.
    "qwen2.5-7b": {
        "config": {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "student": 2048,
    },
}
TEMPERATURE, ALPHA = 40.0, 0.2
# A round counts if other processes used no more than this share of the machine while it ran.
QUIET = 0.05


@dataclass(frozen=True)
class Case:
    """One row: its letter in the table, what it is, and how it runs."""

    key: str
    title: str
    build: str
    accumulation: int = 1
    options: tuple[str, ...] = ()


CASES = {
    case.key: case
    for case in (
        Case("a", "teacher forward", "teacher"),
        Case("b", "student: ordinary training", "ordinary"),
        Case("c", "logit KD, naive loss", "kd_naive"),
        Case("k", "logit KD, fused loss", "kd_fused"),
        Case("d", "published scheme, re-created", "published"),
        Case("e", "this library", "clone"),
        Case("g", "this library, interleaved", "clone", options=("interleaved",)),
        Case("h", "this library, checkpointed", "clone", options=("checkpointed",)),
        Case("l", "this library, elementwise recomputed", "clone", options=("elementwise",)),
        Case("i", "this library, interleaved, checkpointed", "clone", options=("interleaved", "checkpointed")),
        Case("j", "this library, compiled layers", "clone", options=("compiled",)),
        Case("d8", "published scheme, re-created", "published", 8),
        Case("f", "this library", "clone", 8),
        Case("k8", "logit KD, fused loss", "kd_fused", 8),
        Case("j8", "this library, compiled layers", "clone", 8, ("compiled",)),
        Case("naive", "losses alone, naive", "loss_naive"),
        Case("fused", "losses alone, fused", "loss_fused"),
    )
}
# What is compared takes turns; all cases at once would not fit into the memory of a small machine.
GROUPS = {
    "models": ("a", "b", "c", "k", "d", "e"),
    "options": ("d", "e", "h", "l", "j"),
    "interleaved": ("e", "g", "i"),
    "accumulated": ("d8", "f", "k8", "j8"),
    "loss": ("naive", "fused"),
}
# What is aimed at: (name, numerator, denominator, figure, bound).
TARGETS = (
    ("(e) / (d), one micro-batch", "e", "d", "seconds_per_token", 0.70),
    ("(f) / (d8), eight micro-batches", "f", "d8", "seconds_per_token", 0.60),
    ("(j8) / (d8), eight micro-batches", "j8", "d8", "seconds_per_token", 0.60),
    ("memory of (e) / (d), one micro-batch", "e", "d", "peak_bytes", 0.35),
    ("(h) / (d), one micro-batch", "h", "d", "seconds_per_token", 0.70),
    ("memory of (h) / (d), one micro-batch", "h", "d", "peak_bytes", 0.35),
    ("(l) / (d), one micro-batch", "l", "d", "seconds_per_token", 0.70),
    ("memory of (l) / (d), one micro-batch", "l", "d", "peak_bytes", 0.35),
    ("(j) / (d), one micro-batch", "j", "d", "seconds_per_token", 0.70),
    ("(f) / logit KD with the same loss, eight micro-batches", "f", "k8", "seconds_per_token", 1.15),
    ("losses alone, one thread: time", "fused", "naive", "seconds_per_token", 0.65),
    ("losses alone, one thread: memory", "fused", "naive", "peak_bytes", 0.20),
)


# --- one case, in its own process -------------------------------------------------------------------------------------


class Meter:
    """Memory of this process: resident on the CPU, allocated on a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self._libc = None if self.cuda or platform.system() != "Linux" else ctypes.CDLL("libc.so.6")

    def settle(self) -> None:
        """Give freed memory back."""
        gc.collect()
        if self._libc is not None:
            self._libc.malloc_trim(0)

    def now(self) -> int:
        return self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def start(self) -> None:
        """Begin a new peak."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def _read(self, field: str) -> int:
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated()
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024


def build(case: Case, shape: str, batch: tuple[int, int], device: str) -> Callable[[int], object]:
    """The case's step on so many micro-batches, its models and data made."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    fields = SHAPES[shape]
    # Llama's architecture under the name of a type that does not insist on a width divisible by the heads.
    config = MistralConfig(**fields["config"], sliding_window=None, max_position_embeddings=8192)
    width = fields["student"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if case.build.startswith("loss"):
        return _loss_alone(case, config, width, batch, device, dtype)

    def model(hidden_size: int) -> Any:
        resized = MistralConfig.from_dict(config.to_dict() | {"hidden_size": hidden_size})
        with torch.device(device):
            return AutoModelForCausalLM.from_config(resized, dtype=dtype, attn_implementation="sdpa")

    batches = [torch.randint(0, config.vocab_size, batch, device=device) for _ in range(case.accumulation)]
    if case.build == "teacher":
        teacher = model(config.hidden_size).eval()

        def forward_only(count: int) -> None:
            with torch.no_grad():
                for ids in batches[:count]:
                    teacher(input_ids=ids, use_cache=False)

        return forward_only
    loss, optimizer = _BUILDERS[case.build](model, config.hidden_size, width, case)

    def step(count: int) -> None:
        for ids in batches[:count]:
            loss(ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _adamw(parameters: Any) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


def _ordinary(model: Callable[[int], Any], d_t: int, d_s: int, case: Case) -> tuple[Any, Any]:
    student = model(d_s).train()
    return lambda ids: student(input_ids=ids, labels=ids, use_cache=False).loss / case.accumulation, _adamw(
        student.parameters()
    )


def _kd(model: Callable[[int], Any], d_t: int, d_s: int, case: Case) -> tuple[Any, Any]:
    import torch
    from reference import naive_lm_kl

    from lowrank_clone.objective.head import Head
    from lowrank_clone.objective.lm_kl import lm_kl_loss

    teacher, student = model(d_t).eval().requires_grad_(False), model(d_s).train()

    def naive(ids: Any) -> Any:
        with torch.no_grad():
            aim = teacher(input_ids=ids, use_cache=False).logits
        lm, kl = naive_lm_kl(student(input_ids=ids, use_cache=False).logits, aim, ids, TEMPERATURE)
        return (lm + kl) / case.accumulation

    def fused(ids: Any) -> Any:
        with torch.no_grad():
            aim = teacher.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
        heads = Head(student.lm_head.weight), aim, Head(teacher.lm_head.weight)
        valid = torch.ones_like(targets, dtype=torch.bool)
        return lm_kl_loss(hidden, *heads, targets, valid, temperature=TEMPERATURE)[0] / case.accumulation

    return naive if case.build == "kd_naive" else fused, _adamw(student.parameters())


def _published(model: Callable[[int], Any], d_t: int, d_s: int, case: Case) -> tuple[Any, Any]:
    from reference import PublishedScheme

    scheme = PublishedScheme(model(d_t), d_s, TEMPERATURE, ALPHA)
    return lambda ids: scheme(ids)[0] / case.accumulation, _adamw(scheme.trained())


def _clone(model: Callable[[int], Any], d_t: int, d_s: int, case: Case) -> tuple[Any, Any]:
    from lowrank_clone.model import CloneModel
    from lowrank_clone.training.optim import bind

    options = {"execution": "interleaved"} if "interleaved" in case.options else {}
    clone = CloneModel(model(d_t), d_s, temperature=TEMPERATURE, clone_weight=ALPHA, **options).train()
    if "checkpointed" in case.options or "elementwise" in case.options:
        clone.activation_checkpointing_enable({"recompute": "elementwise" if "elementwise" in case.options else "all"})
    if "compiled" in case.options:
        clone.compile_layers()
    return lambda ids: clone(ids).loss / case.accumulation, bind(_adamw(clone.factors.parameters()), clone.factors)


_BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "ordinary": _ordinary,
    "kd_naive": _kd,
    "kd_fused": _kd,
    "published": _published,
    "clone": _clone,
}


def _loss_alone(case: Case, config: Any, width: int, batch: tuple[int, int], device: str, dtype: Any) -> Any:
    """Forward and backward of LM and KL, from hidden states to their gradient and the head's."""
    import torch
    from reference import naive_lm_kl

    from lowrank_clone.objective.head import Head
    from lowrank_clone.objective.lm_kl import lm_kl_loss

    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    hidden, weight = make(*batch, width).requires_grad_(), (make(config.vocab_size, width) * 0.02).requires_grad_()
    aim, aim_weight = make(*batch, config.hidden_size), make(config.vocab_size, config.hidden_size) * 0.02
    ids = torch.randint(0, config.vocab_size, batch, device=device)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
    valid = torch.ones_like(targets, dtype=torch.bool)

    def naive() -> None:
        lm, kl = naive_lm_kl(hidden @ weight.T, aim @ aim_weight.T, ids, TEMPERATURE)
        (lm + kl).backward()

    def fused() -> None:
        heads = Head(weight), aim.flatten(0, 1), Head(aim_weight)
        lm_kl_loss(hidden.flatten(0, 1), *heads, targets, valid, temperature=TEMPERATURE)[0].backward()

    run = naive if case.build == "loss_naive" else fused

    def step(count: int) -> None:
        run()
        hidden.grad = weight.grad = None

    return step


def work(key: str, shape: str, batch: tuple[int, int], device: str, threads: int) -> None:
    """Serve one case: a step and its figures for every line on standard input."""
    import torch

    torch.set_num_threads(threads)
    case, meter = CASES[key], Meter(device)
    step = build(case, shape, batch, device)
    meter.settle()
    base = meter.now()
    step(1)
    print(
        json.dumps({"base_bytes": base, "hardware": torch.cuda.get_device_name() if meter.cuda else "CPU"}), flush=True
    )
    meter.settle()
    for _ in sys.stdin:
        # What a process finds again after waiting for its turn is slow: pages given away, cold caches. What the step
        # before left in the allocator stays, as in training.
        step(1)
        meter.start()
        before, own, all_ = time.perf_counter(), time.process_time(), _busy()
        step(case.accumulation)
        if meter.cuda:
            torch.cuda.synchronize()
        seconds, own, all_ = time.perf_counter() - before, time.process_time() - own, _busy() - all_
        peak = meter.peak() - base
        meter.settle()
        others = max(0.0, all_ - own) / (seconds * (os.cpu_count() or 1))
        print(json.dumps({"seconds": seconds, "cpu": own, "others": others, "peak_bytes": peak}), flush=True)


def profile(key: str, shape: str, batch: tuple[int, int], device: str, threads: int) -> None:
    """Print the operators that one micro-batch and its optimiser step spend most time in."""
    import torch
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(threads)
    step = build(CASES[key], shape, batch, device)
    step(1)
    cuda = device == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step(1)
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=40))


def _busy() -> float:
    """CPU seconds that all processes of the machine have used."""
    idle_too = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(idle_too) - idle_too[3] - idle_too[4]) / os.sysconf("SC_CLK_TCK")


# --- all cases, taking turns ------------------------------------------------------------------------------------------


def measure(keys: tuple[str, ...], options: argparse.Namespace, earlier: dict[str, Any]) -> dict[str, Any]:
    """Raw figures of these cases, by key, the rounds of `earlier` ones included."""
    workers: dict[str, subprocess.Popen[str]] = {}
    figures: dict[str, Any] = {}
    batch = tuple(options.batch)
    run = 1 + max((r["run"] for figure in earlier.values() for r in figure["rounds"]), default=0)
    try:
        for key in keys:
            threads = 1 if CASES[key].build.startswith("loss") else options.threads
            command = [sys.executable, __file__, "--worker", key, "--shape", options.shape, "--device", options.device]
            command += ["--threads", str(threads), "--batch", *map(str, batch)]
            workers[key] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            figures[key] = _answer(key, workers[key]) | {"threads": threads, "rounds": []}
        for _ in range(options.rounds):
            for key, worker in workers.items():
                for _attempt in range(options.attempts):
                    assert worker.stdin is not None
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                    figures[key]["rounds"].append({"run": run} | _answer(key, worker))
                    if figures[key]["rounds"][-1]["others"] <= QUIET:
                        break
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    for key, figure in figures.items():
        figure["rounds"] = earlier.get(key, {}).get("rounds", []) + figure["rounds"]
        figure["tokens"] = batch[0] * batch[1] * CASES[key].accumulation
    return figures


def _answer(key: str, worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"case {key} ended with exit status {worker.wait()}")
    return json.loads(line)


# --- what is written --------------------------------------------------------------------------------------------------


def medians(figure: dict[str, Any], runs: set[int] | None = None) -> dict[str, float]:
    """Of a case's quiet rounds in these runs, its last one unless given; of all of them where none was quiet."""
    runs = runs or {figure["rounds"][-1]["run"]}
    rounds = [r for r in figure["rounds"] if r["run"] in runs]
    used = [r for r in rounds if r["others"] <= QUIET] or rounds
    return {
        "run": max(runs),
        "quiet_rounds": sum(r["others"] <= QUIET for r in rounds),
        "seconds_per_token": statistics.median(r["seconds"] for r in used) / figure["tokens"],
        "cpu_per_token": statistics.median(r["cpu"] for r in used) / figure["tokens"],
        "peak_bytes": statistics.median(r["peak_bytes"] for r in rounds),
    }


def pair(figures: dict[str, Any], top: str, bottom: str) -> tuple[dict[str, float], dict[str, float]] | None:
    """Medians of two cases in the last run that had both, which is all that a ratio may be taken of."""
    if top not in figures or bottom not in figures:
        return None
    first, second = ({r["run"] for r in figures[key]["rounds"]} for key in (top, bottom))
    if not first & second:
        return None
    run = {max(first & second)}
    return medians(figures[top], run), medians(figures[bottom], run)


def table(figures: dict[str, Any]) -> str:
    """The cases and the ratios as Markdown."""
    lines = [
        "| | case | micro-batches | run | quiet rounds | ms / token | CPU ms / token | peak above weights, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, case in CASES.items():
        if key in figures:
            row = medians(figures[key])
            lines.append(
                f"| {key} | {case.title} | {case.accumulation} | {row['run']} | {row['quiet_rounds']} "
                f"| {row['seconds_per_token'] * 1e3:.2f} "
                f"| {row['cpu_per_token'] * 1e3:.2f} | {row['peak_bytes'] / 2**20:,.0f} |"
            )
    lines += ["", "| ratio | run | wall or bytes | CPU | target | |", "|---|---|---|---|---|---|"]
    for name, top, bottom, figure, bound in TARGETS:
        if found := pair(figures, top, bottom):
            above, below = found
            ratio, cpu = above[figure] / below[figure], ""
            if figure == "seconds_per_token":
                cpu = f"{above['cpu_per_token'] / below['cpu_per_token']:.2f}"
            verdict = "met" if ratio <= bound else "missed"
            lines.append(f"| {name} | {above['run']} | {ratio:.3f} | {cpu} | ≤ {bound:.2f} | {verdict} |")
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Time and memory as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = [key for key in CASES if key in figures and not CASES[key].build.startswith("loss")]
    labels = [f"{key}  {CASES[key].title}" + (f" ×{n}" if (n := CASES[key].accumulation) > 1 else "") for key in keys]
    colours = [
        "#b5533c" if CASES[k].build == "published" else "#2f6f8f" if CASES[k].build == "clone" else "#9aa5ad"
        for k in keys
    ]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.36 * len(keys) + 1), sharey=True, layout="constrained")
    rows = [medians(figures[key]) for key in keys]
    values = ([row["seconds_per_token"] * 1e3 for row in rows], [row["peak_bytes"] / 2**30 for row in rows])
    for axis, value, title in zip(axes, values, ("ms per token", "peak memory above weights, GiB"), strict=True):
        bars = axis.barh(labels, value, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axis.margins(x=0.12)
        axis.set_xlabel(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=list(GROUPS), help="these cases only, all unless given")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="these cases only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--batch", type=int, nargs=2, default=(2, 512), metavar=("ROWS", "LENGTH"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="raw figures, JSON")
    parser.add_argument("--figure", type=Path, help="draw them here")
    parser.add_argument(
        "--attempts", type=int, default=1, help="repeat a step up to so often until the machine is quiet"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier rounds instead of adding to them")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--profile", choices=list(CASES), help="measure nothing but where this case spends its time")
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for run, key in ((work, options.worker), (profile, options.profile)):
        if key:
            run(key, options.shape, tuple(options.batch), options.device, options.threads)
            return
    output = options.output or FOLDER / f"speed-{options.shape}-{options.device}.json"
    figures = json.loads(output.read_text()) if output.exists() and not options.fresh else {}
    groups = [tuple(options.cases)] if options.cases else list(GROUPS.values())
    if options.group:
        groups = [GROUPS[options.group]]
    for group in [] if options.report else groups:
        figures |= measure(group, options, figures)
        output.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    if options.figure:
        draw(figures, options.figure)


if __name__ == "__main__":
    main()
