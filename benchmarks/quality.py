"""Starts, parameterisations and baselines on a real teacher: validation loss at equal tokens and equal text.

    python benchmarks/quality.py                          # everything that is missing, then the table and the figure
    python benchmarks/quality.py --max-runs 1             # the next missing run only
    python benchmarks/quality.py --variants scratch calibrated --seeds 0 1
    python benchmarks/quality.py --report                 # only the table and the figure, from finished runs

Each run is one JSON in the output folder; a run that is there is not done again, a killed one starts anew. Every
variant, or the one that it is `tuned_as`, first tries optimisers and learning rates on short runs (`--grid-tokens`, the
same schedule squeezed into that length); the best goes into the full run (`--tokens`). With `--grid-tokens 0` its first
does, and with `--rate` that rate, with the optimiser of its first. The table shows the best full run. `adamw` is
AdamW(0.9, 0.95), `muon` is Muon(0.9) for matrices and that AdamW for the rest; no weight decay, clipping at 1.0, a
warm-up over 5 % of the steps (three at least) and a linear decay to zero.

Text: Python's own documentation topics and docstrings, held out by document. A seed decides the order of the blocks
and a random start. A run of n tokens sees n / 256 blocks, each once; the calibrated start is computed from the first
16,384 tokens of the full run's own blocks (channels from its first 15 blocks), so no variant sees text that another
does not.

Token efficiency: how many tokens `scratch` needs for a loss is read off the longest scratch run's evaluations.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.prepare import prepare
from lowrank_clone.errors import NonFiniteLoss
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.evaluate import language_loss
from lowrank_clone.plan.classify import make_plan
from lowrank_clone.plan.roles import Plan
from lowrank_clone.recipe.schema import TeacherConfig
from lowrank_clone.run.demo import write_text
from lowrank_clone.run.demo_teacher import teacher_file
from lowrank_clone.run.resolve import resolve_dtype
from lowrank_clone.run.teachers import load_config, load_teacher, load_tokenizer
from lowrank_clone.starts.calibrated import calibrated_start
from lowrank_clone.starts.channels import channels_start
from lowrank_clone.training.arguments import CloneArguments
from lowrank_clone.training.trainer import CloneTrainer

LENGTH = 256
BATCH = 8
CALIBRATION_TOKENS = 16_384

BASELINE: dict[str, Any] = {"clone_weight": 0.0, "kl_weight": 0.0}
# The published code sums the KL over positions and leaves out T^2: here that is a weight of L / T^2, with raw taps.
T40: dict[str, Any] = {"temperature": 40.0, "kl_weight": LENGTH / 40.0**2, "clone_weight": 0.2}
T1: dict[str, Any] = {
    "temperature": 1.0,
    "kl_weight": 1.0,
    "clone_weight": 0.2,
    "clone_normalization": "target",
}
# As in the trials of docs/log.md; with Muon the gradient through a tap's target makes no difference there.
HELD: dict[str, Any] = T1 | {"target_gradient": False}


@dataclass(frozen=True)
class Variant:
    """A row of the table: where the student starts, options of `CloneModel`, and what to try."""

    title: str
    start: str
    options: dict[str, Any]
    settings: tuple[tuple[str, float], ...]  # optimiser and learning rate
    parameterization: dict[str, str] = field(default_factory=dict)
    tuned_as: str | None = None  # the variant whose short runs choose for this one too


FRESH = (("adamw", 1e-3), ("adamw", 3e-3), ("muon", 3e-3))
PRUNED = (("adamw", 3e-4), ("adamw", 1e-3), ("muon", 1e-3), ("muon", 3e-3))
FITTED = (("muon", 3e-4),)  # the best of the trials in docs/log.md
ALL_DENSE = {"attention": "dense", "ffn": "dense", "embedding": "dense"}
VARIANTS = {
    "scratch": Variant("scratch, LM", "scratch", BASELINE, FRESH),
    "logit_kd": Variant("scratch, LM + KL", "scratch", T1 | {"clone_weight": 0.0}, FRESH),
    "channels_dense": Variant(
        "pruned channels, dense, LM + KL", "channels", T1 | {"clone_weight": 0.0}, PRUNED, ALL_DENSE
    ),
    "random_t40": Variant("random, T = 40, raw taps (published)", "random", T40, FRESH),
    "random_t1": Variant("random, T = 1, normalised taps", "random", T1, FRESH, tuned_as="random_t40"),
    # The setting whose full run was the better one of two for channels_t1.
    "channels_t40": Variant("channels, T = 40, raw taps", "channels", T40, (("muon", 1e-3),)),
    "channels_t1": Variant("channels, T = 1, normalised taps", "channels", T1, PRUNED),
    "calibrated": Variant("calibrated, T = 1, normalised taps, targets held", "calibrated", HELD, FITTED),
    "calibrated_dense": Variant("calibrated + dense FFN", "calibrated", HELD, FITTED, {"ffn": "dense"}),
    "calibrated_core": Variant("calibrated + core FFN", "calibrated", HELD, FITTED, {"ffn": "core"}),
}


@dataclass(frozen=True)
class Run:
    """One training run; its name is its file's."""

    variant: str
    optimizer: str
    rate: float
    tokens: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.optimizer}{self.rate:g}-{self.tokens}-seed{self.seed}"

    @property
    def steps(self) -> int:
        return self.tokens // (BATCH * LENGTH)


# --- what there is to run ---------------------------------------------------------------------------------------------


def read(run: Run, folder: Path) -> dict[str, Any] | None:
    """The run's result, or None."""
    file = folder / f"{run.name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def last_loss(result: dict[str, Any]) -> float:
    """Validation loss after the last token; infinite for a run that diverged."""
    return math.inf if result["diverged"] else result["curve"][-1][1]


def grid(variant: str, options: argparse.Namespace) -> list[Run]:
    """The short runs that choose optimiser and learning rate; none where there is no choice."""
    variant = VARIANTS[variant].tuned_as or variant
    settings = VARIANTS[variant].settings if options.grid_tokens and options.rate is None else ()
    return [Run(variant, *setting, options.grid_tokens, 0) for setting in settings] if len(settings) > 1 else []


def best(variant: str, options: argparse.Namespace) -> tuple[str, float]:
    """Optimiser and learning rate of the best short run; the first ones where there is none."""
    results = [(run, read(run, options.output)) for run in grid(variant, options)]
    losses = {run: last_loss(result) for run, result in results if result is not None}
    if losses:
        run = min(losses, key=lambda run: losses[run])
        return run.optimizer, run.rate
    optimizer, rate = VARIANTS[variant].settings[0]
    return optimizer, options.rate or rate


def missing(options: argparse.Namespace) -> Iterator[Run]:
    """Runs still to do, in order: for each variant its short runs, then its full one; seeds after the first last."""
    for seed in options.seeds:
        for variant in options.variants:
            yield from (run for run in grid(variant, options) if read(run, options.output) is None)
            full = Run(variant, *best(variant, options), options.tokens, seed)
            if read(full, options.output) is None:
                yield full


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Training blocks and held-out ones: rows with `input_ids`."""

    train: Any
    validation: Any


def prepare_text(options: argparse.Namespace, teacher: TeacherConfig) -> Text:
    """Tokenised blocks of Python's own documentation."""
    folder = options.output / "text"
    if not folder.is_dir():
        write_text(folder)
    config = DataConfig(
        sources=[SourceConfig(path=str(folder))],
        sequence_length=LENGTH,
        validation=0.05,
        max_validation_blocks=options.validation_blocks,
    )
    vocabulary = load_config(teacher).vocab_size
    blocks = prepare(config, load_tokenizer(teacher), max_length=LENGTH, vocab_size=vocabulary)
    return Text(blocks.train, blocks.validation)


def make_start(variant: Variant, plan: Plan, teacher: PreTrainedModel, text: Text, folder: Path) -> Any:
    """What `CloneModel(start=...)` takes; calibrated factors are computed once and kept in `folder`."""
    if variant.start in ("scratch", "random"):
        return variant.start
    file = folder / f"start-{variant.start}-{plan.student_width}.safetensors"
    if not file.exists():
        began = time.perf_counter()
        rows = [text.train[i]["input_ids"] for i in range(CALIBRATION_TOKENS // LENGTH)]
        ids = torch.stack(rows).to(teacher.device)
        batches = list(ids.split(BATCH))
        factors = (calibrated_start if variant.start == "calibrated" else channels_start)(teacher, plan, batches)
        save_file({name: value.clone() for name, value in factors.items()}, file)  # channels share one matrix
        print(f"{variant.start} start: {time.perf_counter() - began:.0f} s")
    return load_file(file)


class Curve(TrainerCallback):
    """Validation loss of the student at the start and after some steps."""

    def __init__(self, student: PreTrainedModel, blocks: Sequence[Any], steps: set[int]) -> None:
        self.student, self.blocks, self.steps = student, blocks, steps
        self.points: list[tuple[int, float]] = []

    def measure(self, tokens: int) -> None:
        self.points.append((tokens, language_loss(self.student, self.blocks, BATCH).loss))
        print(f"  {tokens:>7,} tokens: validation {self.points[-1][1]:.4f}", flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps or state.global_step == state.max_steps:
            self.measure(state.num_input_tokens_seen)


def execute(run: Run, teacher: PreTrainedModel, text: Text, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate; the result as it is stored."""
    variant = VARIANTS[run.variant]
    plan = make_plan(teacher.config, options.hidden_size)
    start = make_start(variant, plan, teacher, text, options.output)
    torch.manual_seed(run.seed)
    clone = CloneModel(
        teacher,
        options.hidden_size,
        start=start,
        seed=run.seed,
        parameterization=variant.parameterization,
        **variant.options,
    )
    warmup = min(run.steps, max(3, round(0.05 * run.steps)))
    curve = Curve(clone.student, text.validation, {5, *range(10, run.steps, 10)})
    with tempfile.TemporaryDirectory() as scratch:
        arguments = CloneArguments(
            output_dir=scratch,
            max_steps=run.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=run.rate,
            muon=run.optimizer == "muon",
            muon_momentum=0.9,
            lr_scheduler_type="linear",
            warmup_steps=warmup,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            log_taps=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=teacher.device.type == "cpu",
            seed=run.seed,
        )
        train = text.train.select(range(run.tokens // LENGTH))
        trainer = CloneTrainer(clone, arguments, train_dataset=train, callbacks=[curve])
        diverged = False
        try:
            trainer.train()
        except NonFiniteLoss as error:
            print(error)
            diverged = True
    logs = [line for line in trainer.state.log_history if "lm" in line]
    kept = ("step", "lm", "kl", "clone", "grad_norm")
    return {
        "variant": run.variant,
        "optimizer": run.optimizer,
        "rate": run.rate,
        "tokens": run.tokens,
        "seed": run.seed,
        "calibration_tokens": {"calibrated": CALIBRATION_TOKENS, "channels": 15 * LENGTH}.get(variant.start, 0),
        "diverged": diverged,
        "teacher": teacher_loss(teacher, text, options.output),
        "parameters": clone.student.num_parameters(),
        "warmup_steps": warmup,
        "dtype": str(clone.student.dtype).removeprefix("torch."),
        "curve": curve.points,
        "log": [{key: round(line[key], 4) for key in kept if key in line} for line in logs],
    }


def teacher_loss(teacher: PreTrainedModel, text: Text, folder: Path) -> float:
    """The teacher's validation loss, measured once."""
    file = folder / "teacher.json"
    if not file.exists():
        file.write_text(json.dumps(language_loss(teacher, text.validation, BATCH).loss), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


# --- what is written --------------------------------------------------------------------------------------------------


def finished(folder: Path) -> list[dict[str, Any]]:
    """All results in the output folder."""
    files = sorted(folder.glob("*-seed*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def setting(result: dict[str, Any]) -> tuple[str, float]:
    """Optimiser and learning rate of a result."""
    return result["optimizer"], result["rate"]


def best_full(own: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """A variant's runs of this length at the setting whose first seed ended best, one for each seed."""
    full = sorted((result for result in own if result["tokens"] == tokens), key=lambda result: result["seed"])
    if not full:
        return []
    chosen = setting(min((result for result in full if result["seed"] == full[0]["seed"]), key=last_loss))
    return [result for result in full if setting(result) == chosen]


def scratch_tokens(loss: float, results: list[dict[str, Any]]) -> str:
    """Tokens after which the longest scratch run is at this loss, or the bound that it leaves."""
    runs = [result for result in results if result["variant"] == "scratch"]
    if not runs or not math.isfinite(loss):
        return "–"
    curve = max(runs, key=lambda result: (result["tokens"], -last_loss(result)))["curve"]
    reached = next((tokens for tokens, value in curve if value <= loss), None)
    return f"> {curve[-1][0]:,}" if reached is None else f"≤ {reached:,}"


def table(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """One row per variant as Markdown; what was not run says so."""
    lines = [
        f"| variant | optimiser, rate | start | after {options.tokens:,} tokens | perplexity | highest above start "
        "| tokens scratch needs | others tried: loss (tokens) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, variant in VARIANTS.items():
        own = [result for result in results if result["variant"] == key]
        full = best_full(own, options.tokens)
        others = sorted((r for r in own if r not in full), key=lambda result: (result["tokens"], *setting(result)))
        tried = (
            ", ".join(f"{r['optimizer']} {r['rate']:g}: {show(last_loss(r))} ({r['tokens']:,})" for r in others) or "–"
        )
        if not full:
            lines.append(f"| {variant.title} | | | not run | | | | {tried} |")
            continue
        losses, start = [last_loss(result) for result in full], full[0]["curve"][0][1]
        rise = max(value - result["curve"][0][1] for result in full for _, value in result["curve"])
        mean = sum(losses) / len(losses)
        lines.append(
            f"| {variant.title} | {full[0]['optimizer']} {full[0]['rate']:g} | {show(start)} "
            f"| {' / '.join(map(show, losses))} | {math.exp(min(mean, 700)):,.1f} | {rise:.2f} "
            f"| {scratch_tokens(mean, results)} | {tried} |"
        )
    return "\n".join(lines)


def show(loss: float) -> str:
    """A loss for people."""
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def draw(results: list[dict[str, Any]], teacher: float, options: argparse.Namespace, path: Path) -> None:
    """Validation loss against tokens: the full runs, and the longest scratch run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, (key, variant) in enumerate(VARIANTS.items()):
        own = [result for result in results if result["variant"] == key]
        longer = [result for result in own if result["tokens"] > options.tokens]
        for index, result in enumerate(best_full(own, options.tokens) + longer):
            tokens, losses = zip(*result["curve"], strict=True)
            label = variant.title if index == 0 else None
            style = "-" if index == 0 else "--" if result in longer else ":"
            axes.plot(tokens, losses, style, marker="o", markersize=3, color=f"C{number}", label=label)
    axes.axhline(teacher, color="gray", linestyle="--", linewidth=1, label=f"teacher {teacher:.2f}")
    axes.set(xlabel="training tokens", ylabel="validation loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def train(options: argparse.Namespace) -> None:
    """Do what is missing, run by run; a result is there as a whole or not at all."""
    source = TeacherConfig(model=str(options.teacher or teacher_file()))
    text = prepare_text(options, source)
    device = torch.device(options.device)
    teacher = load_teacher(source, resolve_dtype(options.dtype, device), device)
    done = 0
    while (run := next(missing(options), None)) and (options.max_runs is None or done < options.max_runs):
        began = time.perf_counter()
        print(f"{run.name}: {run.steps} steps", flush=True)
        result = execute(run, teacher, text, options)
        file = options.output / f"{run.name}.json"
        file.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".part").rename(file)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
        done += 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=61_440, help="of a full run")
    parser.add_argument("--grid-tokens", type=int, default=16_384, help="of the runs that choose optimiser and rate")
    parser.add_argument("--rate", type=float, help="do full runs at this learning rate, without a grid")
    parser.add_argument("--max-runs", type=int, help="stop after so many")
    parser.add_argument("--teacher", help="folder, GGUF file or Hub id; the demo's teacher unless given")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--validation-blocks", type=int, default=32)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--figure", type=Path, help="draw it here; `quality.png` in the output folder unless given")
    parser.add_argument("--report", action="store_true", help="train nothing")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Do what is missing, unless only a report is asked for, and report."""
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.report and next(missing(options), None):
        train(options)
    results = finished(options.output)
    print(table(results, options))
    if results:
        draw(results, results[0]["teacher"], options, options.figure or options.output / "quality.png")


if __name__ == "__main__":
    main(parse())
