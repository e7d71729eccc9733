"""The finished student as a folder that `AutoModelForCausalLM` loads anywhere, with a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError, one_line
from ..model import CloneModel
from ..recipe.load import dump_recipe
from ..recipe.schema import Recipe
from ..training.checkpoint import respect_umask
from ..training.readers import save_for_readers
from .disk import disk_errors
from .redaction import for_a_card
from .saved import clone_of, open_run
from .teachers import load_tokenizer

Put = Callable[[Path, Path], None]


@dataclass(frozen=True)
class CardFacts:
    """What the model card says of a run. Losses are nats per token, by what they are of."""

    teacher: str
    license: str
    tokens: int
    losses: Mapping[str, float] = field(default_factory=dict)


def export_student(
    clone: CloneModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    facts: CardFacts,
    put: Put,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, config, generation config, tokenizer with chat template, and README.md.

    The weights are the leaves that were trained, to the bit; nothing of this library is needed to load them. All is
    written beside the folder first, so that a disk that fills up leaves what was there.

    Args:
        put: Moves what was written into the folder.
        weights: The student's, where the clone holds parts of them only.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        save_for_readers(clone.student, part, tokenizer, clone.teacher.config, weights)
        (part / "README.md").write_text(_card(clone, recipe, facts), encoding="utf-8")
        respect_umask(part.rglob("*"))
        put(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_output(output: Path, run: Path) -> None:
    """Refuse a folder for an export that holds anything, or is a part of the run.

    Raises:
        InputError: It says which.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise InputError(f"`{output}` is a file; give a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"`{output}` is not empty; give a new folder")
    real, inside = output.resolve(), run.resolve()
    nearest = next(path for path in (real, *real.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"`{output}` lies below the file `{nearest}`; give a new folder")
    if real == inside or inside in real.parents:
        raise InputError(f"`{output}` lies inside the run `{run}`, where runs are replaced; give a folder elsewhere")


def export_run(run: Path, output: Path) -> int:
    """Export the student of a run's last checkpoint, with neither text nor cache; returns its optimiser step.

    Raises:
        InputError: There is no such run or teacher, or the output folder is not empty, is a part of the run, or can't
            be written to.
    """
    with disk_errors(f"could not write to `{one_line(output, 150)}`", "give another folder"):
        check_output(output, run)
        saved = open_run(run)
        tokenizer = load_tokenizer(saved.recipe.teacher)
        clone = clone_of(saved)
        losses = {} if saved.results is None else saved.results.table(saved.step)
        model = saved.recipe.teacher.model
        facts = CardFacts(model, teacher_license(model), saved.tokens, losses)
        export_student(clone, output, tokenizer, saved.recipe, facts, put=_take_place)
    return saved.step


def _take_place(part: Path, output: Path) -> None:
    """A folder that is empty or not there yet: the whole is there at once, or nothing."""
    os.replace(part, output)


def teacher_license(model: str) -> str:
    """The teacher's licence: from the card in its folder, the GGUF file's metadata, or the Hub; else `unknown`."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return _gguf_license(path)
    try:
        card = ModelCard.load(path / "README.md" if path.is_dir() else model)
        return str(card.data.to_dict().get("license") or "unknown")
    except Exception:  # no card, or no network to fetch it: the model card then says so
        return "unknown"


def _gguf_license(path: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("general.license")
    return str(field.contents()) if field is not None else "unknown"


def _card(clone: CloneModel, recipe: Recipe, facts: CardFacts) -> str:
    plan = clone.plan
    known = facts.license != "unknown"
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata |= {"tags": ["low-rank-clone", "distillation"], "license": facts.license if known else "other"}
    if not Path(facts.teacher).exists():
        metadata["base_model"] = facts.teacher
    # A local teacher is called by its file: paths of one machine tell nobody else anything.
    name = Path(facts.teacher).name if Path(facts.teacher).exists() else facts.teacher
    rows = [f"| {name} | {loss:.4f} |" for name, loss in facts.losses.items()]
    title = "| loss on held-out text (nats per token) | |\n|---|---|\n"
    losses = title + "\n".join(rows) if rows else "The run recorded no losses on held-out text."
    licence = f"`{facts.license}`" if known else "not found beside its weights; see the teacher's page"
    return f"""---
{ModelCardData(**metadata).to_yaml()}
---
# Low-Rank Clone of {Path(name).name}

A student of the same architecture as its teacher `{name}` with its residual stream narrowed from
{plan.teacher_width} to {plan.student_width} channels: {plan.deployed_parameters:,} parameters. Its weights were
generated from the teacher's by trained low-rank factors (Low-Rank Clone,
[arXiv 2505.12781](https://arxiv.org/abs/2505.12781)).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

* Teacher: `{name}`; its licence, which binds this derivative: {licence}.
* Training: {facts.tokens:,} tokens, transformers {transformers.__version__}.

{losses}

## Recipe

```yaml
{dump_recipe(for_a_card(recipe)).rstrip()}
```
"""
