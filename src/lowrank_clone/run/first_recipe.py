"""A first recipe for a teacher and a text: sizes chosen by both, every choice explained beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.config import DataConfig, SourceConfig
from ..data.estimate import TextEstimate, estimate_text
from ..errors import InputError
from ..plan.decoder import decoder_config
from ..plan.roles import Plan
from ..recipe.load import parse_recipe
from ..recipe.schema import Recipe, StudentConfig, TeacherConfig
from ..recipe.yaml12 import parse_yaml
from .demo_teacher import with_installed_teacher
from .forecast import forecast
from .job import check, max_length, plan_of
from .teachers import load_config, load_tokenizer

_STEP_TOKENS = 4096  # of an optimiser step
_LONGEST = 1024  # tokens of a sequence
_BLOCKS = 200  # a text should give so many, or sequences are shorter
_HUB_TOKENS = 100_000_000  # of a run on a Hub dataset, whose size is not known

_TEMPLATE = """\
# Written by `lrc init`. Any field of the sections can be added, or overridden on the command line; `lrc recipes NAME`
# prints others. Every field is described in the library's recipe/schema.py and data/config.py.
teacher:
  model: {model}

student:
  hidden_size: {width}  # of the teacher's {teacher_width}; {deployed:,} parameters. Smaller is faster and worse.

method:
  init: calibrated  # a start that is useful before the first step; or random (LRC), or channels (RED)
  temperature: 1.0  # of the distillation; the paper's is 40 with kl_weight L / 1600
  kl_weight: 1.0
  clone_weight: 0.2  # of the losses on inner activations
  clone_normalization: target  # so that no layer outweighs the others
  target_gradient: false

data:
  sources:  # files, folders, globs, Hub datasets; weight or tokens, text_column, chat_column and filter where needed
{sources}
  sequence_length: {length}  # tokens{length_reason}
  validation: {validation}  # share of the text that is held out

training:
  output_dir: {output_dir}
  {duration}
  per_device_train_batch_size: {batch}  # sequences, {step_tokens:,} tokens a step. Out of memory? Halve it and double
  gradient_accumulation_steps: 1  # this one.
  learning_rate: 3e-4
  muon: true  # for matrices, AdamW for the rest
  adam_beta2: 0.95
  # Logging, evaluation, checkpoints and warm-up follow the length of the run unless they are set here.
"""


@dataclass(frozen=True)
class _Choices:
    """What depends on teacher and text."""

    plan: Plan
    length: int
    batch: int
    validation: float
    train_blocks: int | None
    sizes: tuple[int | None, ...]
    """Tokens of each source, about."""


def first_recipe(teacher: str, paths: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe's text, and lines that say what it will do.

    Raises:
        InputError: The teacher can't be cloned, or the text not trained on.
    """
    chosen = _choose(_probe(teacher, paths), teacher)
    tokens = None if chosen.train_blocks is None else chosen.train_blocks * chosen.length
    text = _TEMPLATE.format(
        model=_quoted(teacher),
        width=chosen.plan.student_width,
        teacher_width=f"{chosen.plan.teacher_width:,}",
        deployed=chosen.plan.deployed_parameters,
        sources="\n".join(_sources(paths, chosen.sizes)),
        length=chosen.length,
        length_reason="" if chosen.length == _LONGEST else ", as long as this text or this teacher suggests",
        validation=chosen.validation,
        output_dir=_quoted(f"runs/{_slug(teacher)}-{chosen.plan.student_width}"),
        duration=f"total_tokens: {_HUB_TOKENS}"
        if tokens is None
        else f"num_train_epochs: 1  # times that the text is read, about {tokens:,} tokens each",
        batch=chosen.batch,
        step_tokens=chosen.batch * chosen.length,
    )
    job = check(with_installed_teacher(parse_recipe(parse_yaml(text, "the new recipe"))))
    return text, forecast(job).lines()


def _probe(teacher: str, paths: Sequence[str]) -> Recipe:
    sources = [SourceConfig(path=path, repeat=False) for path in paths]
    data = DataConfig(sources=sources, sequence_length=2, validation=0.05)
    return with_installed_teacher(Recipe(TeacherConfig(teacher), StudentConfig(hidden_size=4), data))


def _choose(recipe: Recipe, teacher: str) -> _Choices:
    plan = _narrower(recipe)
    found = estimate_text(recipe.data, load_tokenizer(recipe.teacher))
    tokens = _tokens(found)
    limit = max_length(plan.teacher_config) or _LONGEST
    length = _power_below(min(_LONGEST, limit, _LONGEST if tokens is None else max(tokens // _BLOCKS, 8)))
    validation = 0.01 if tokens is None or tokens > 2_000_000 else 0.05
    blocks = None if tokens is None else int(tokens * (1 - validation)) // length
    batch = max(1, _STEP_TOKENS // length)
    if blocks is not None:
        batch = max(1, min(batch, blocks // 20))
    return _Choices(plan, length, batch, validation, blocks, tuple(source.tokens for source in found.sources))


def _sources(paths: Sequence[str], sizes: Sequence[int | None]) -> Iterator[str]:
    """The entries of the sources; where there are several, weights that are their sizes, so that all text is read."""
    total = sum(size or 0 for size in sizes)
    for path, size in zip(paths, sizes, strict=True):
        yield f"    - path: {_quoted(path)}"
        if len(paths) > 1 and size is not None and None not in sizes:
            yield f"      weight: {size / total:.3g}  # its share of the text; with another one, see repeat"


def _narrower(recipe: Recipe) -> Plan:
    """The plan of a student of about two thirds of the teacher's width, the first that its family takes."""
    width = int(decoder_config(load_config(recipe.teacher)).hidden_size)
    refused: InputError | None = None
    for candidate in _widths(width):
        try:
            return plan_of(
                Recipe(
                    recipe.teacher, StudentConfig(hidden_size=candidate), recipe.data, recipe.method, recipe.training
                )
            )
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _widths(teacher_width: int) -> Iterator[int]:
    """Round widths around two thirds of the teacher's, the roundest first."""
    goal = teacher_width * 2 / 3
    for multiple in (128, 64, 32, 16, 8, 4):
        around = [round(goal / multiple) * multiple + step * multiple for step in (0, -1, 1)]
        yield from (width for width in around if teacher_width // 3 <= width < teacher_width and width >= 4)


def _tokens(found: TextEstimate) -> int | None:
    counts = [source.tokens for source in found.sources]
    return None if None in counts else sum(count or 0 for count in counts)


def _power_below(number: int) -> int:
    return 1 << max(1, number.bit_length() - 1)


def _slug(teacher: str) -> str:
    """A folder's name from a teacher's."""
    name = Path(teacher).expanduser().name.removesuffix(".gguf") or "student"
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.").lower() or "student"


def _quoted(text: str) -> str:
    """Plain where YAML reads it back as it stands, else in quotes."""
    try:
        plain = re.fullmatch(r"[\w./~-]+", text, re.ASCII) is not None and parse_yaml(text, "") == text
    except InputError:
        plain = False
    return text if plain else json.dumps(text)
