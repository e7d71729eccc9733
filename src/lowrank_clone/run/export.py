"""The finished student as a folder that `AutoModelForCausalLM` loads anywhere, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..model import CloneModel
from ..recipe.load import dump_recipe
from ..recipe.schema import Recipe


@dataclass(frozen=True)
class CardFacts:
    """What the model card says of a run. Losses are nats per token."""

    teacher: str
    license: str
    tokens: int
    losses: Mapping[str, float]


def export_student(
    clone: CloneModel, folder: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, facts: CardFacts
) -> None:
    """Write weights, config, generation config, tokenizer with chat template, and README.md. The weights are the leaves
    that were trained, to the bit; nothing of this library is needed to load them."""
    clone.student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(clone, recipe, facts), encoding="utf-8")


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
    losses = "\n".join(f"| {name} | {loss:.4f} |" for name, loss in facts.losses.items())
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

| loss on held-out text (nats per token) | |
|---|---|
{losses}

## Recipe

```yaml
{dump_recipe(recipe).rstrip()}
```
"""
