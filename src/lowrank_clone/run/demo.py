"""`lrc demo`: a real teacher distilled from end to end on a laptop, next to the same student trained from scratch."""

from __future__ import annotations

import ast
import pydoc_data.topics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..hooks import evaluating
from ..model import CloneModel
from ..objective.evaluate import LanguageLoss, language_loss
from ..recipe.load import load_recipe
from ..report.curves import draw_curves
from ..training.metrics import read_metrics
from .demo_teacher import with_installed_teacher
from .execute import Result, execute, make_trainer
from .job import Job, check
from .manifest import holds_run, record
from .output_folder import check_folder, output_folder

PROMPT = "This method returns a list of"
SCRATCH_LEARNING_RATE = 1e-3


def run_demo(overrides: Sequence[str], console: Console) -> None:
    """Train the demo's recipe, train a same-shaped student from scratch on the same tokens, and compare all four.

    Raises:
        InputError: The teacher's package is not installed, or an override is not usable.
    """
    recipe = with_installed_teacher(load_recipe("demo", overrides))
    folder = output_folder(recipe)
    check_folder(folder, resume=False, overwrite=holds_run(folder))
    text = Path(recipe.data.sources[0].path).expanduser()
    count = write_text(text)
    console.print(f"Text {count:,} documentation topics and docstrings of Python {sys.version.split()[0]}: {text}")
    job = check(recipe, overwrite=holds_run(folder), also=("scratch",))
    result = execute(job, console)
    console.print("Baseline the same student from scratch on the same tokens")
    scratch = train_scratch(job, result)
    compare(job, result, *scratch, console)
    levels = {"teacher": result.teacher.loss, "scratch student": scratch[1].loss}
    draw_curves(read_metrics(folder / "metrics.jsonl"), folder / "curves.png", levels)
    record(folder, [folder / "curves.png", folder / "scratch" / "metrics.jsonl"])
    console.print(
        f"Written to {folder}: student/ (a plain transformers checkpoint), metrics.jsonl, curves.png, recipe.yaml"
    )


def compare(job: Job, result: Result, scratch: PreTrainedModel, scratch_loss: LanguageLoss, console: Console) -> None:
    """Print the losses of all four models, and what those write that still are in memory."""
    rows = [
        ("teacher", result.clone.teacher, result.teacher),
        ("scratch student", scratch, scratch_loss),
        ("LRC student before training", None, result.before),
        ("LRC student", result.clone.student, result.after),
    ]
    table = Table(title=f"Validation, {result.after.tokens:,} held-out tokens; students after {result.tokens:,} tokens")
    for heading in ("model", "parameters", "loss (nats/token)", "perplexity"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, model, loss in rows:
        size = (model or result.clone.student).num_parameters()
        known = ("", "") if loss is None else (f"{loss.loss:.3f}", f"{loss.perplexity:,.1f}")
        table.add_row(name, f"{size:,}", *known)
    console.print(table)
    for name, model, _ in rows:
        if model is not None:
            console.print(f"{name}: {PROMPT} {continuation(model, job.tokenizer, PROMPT)}")


def write_text(folder: Path) -> int:
    """One .txt file for each documentation topic and each module's docstrings; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {f"topic-{name}": text for name, text in pydoc_data.topics.topics.items()}
    documents |= dict(_docstrings(Path(ast.__file__).parent))
    for name, text in documents.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return len(documents)


def _docstrings(library: Path) -> Iterator[tuple[str, str]]:
    """(module, its docstrings of some length) for the modules of the standard library's own folder."""
    for file in sorted(library.glob("*.py")) + sorted(library.glob("*/__init__.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # the library's own test files for such errors
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(text for text in texts if len(text) > 80)
        if text:
            yield f"module-{file.parent.name}-{file.stem}", text


def train_scratch(job: Job, result: Result) -> tuple[PreTrainedModel, LanguageLoss]:
    """A student of the same shape that saw the same blocks in the same order, with the next-token loss alone.

    Its learning rate is a usual one for this size, and its warm-up short, since it has no good start to lose.
    """
    torch.manual_seed(job.arguments.seed)
    scratch = CloneModel(
        result.clone.teacher,
        job.plan.student_width,
        student=job.recipe.student.overrides,
        dtype=result.clone.student.dtype,
        kl_weight=0.0,
        clone_weight=0.0,
        start="scratch",
    )
    folder = job.folder / "scratch"
    arguments = replace(
        job.arguments,
        output_dir=str(folder),
        muon=False,
        learning_rate=SCRATCH_LEARNING_RATE,
        warmup_steps=1,
        save_strategy="no",
        eval_strategy="no",
        eval_on_start=False,
    )
    recipe = replace(job.recipe, method=replace(job.recipe.method, baseline="scratch", init="random"))
    trainer = make_trainer(replace(job, recipe=recipe, folder=folder, arguments=arguments), scratch, result.blocks)
    trainer.train()
    blocks = result.blocks.validation
    return scratch.student, language_loss(scratch.student, blocks, job.arguments.per_device_eval_batch_size)


@torch.no_grad()
def continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 24) -> str:
    """What `model` writes after `prompt`, greedily, on one line."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with evaluating(model):
        output: Any = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(str(text).split())
