"""`plan.json` of a checkpoint: what its factors belong to, and how they hang on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import InputError
from ..factors.parameterize import KINDS

FACTORS_FILE, PLAN_FILE = "factors.safetensors", "plan.json"
FORMAT = 2


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Stored:
    """The content of `plan.json`.

    teacher: digest of its weights. scratch: whether the student hangs on no teacher. kinds: of each group. links: leaf
    -> factor. taps: what was compared. normalization: `clone_normalization`. tensors: all in the factors' file.
    """

    format: int
    model_type: str
    teacher_width: int
    student_width: int
    roles: dict[str, list[Any]]
    teacher: str
    scratch: bool
    kinds: dict[str, Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]]
    links: dict[str, str]
    taps: list[str]
    normalization: str
    tensors: list[str]


_READER = TypeAdapter(Stored)


def read_stored(folder: Path) -> Stored:
    """`plan.json` of a checkpoint.

    Raises:
        InputError: There is none, or it is not one that this version writes.
    """
    if not (folder / FACTORS_FILE).is_file() or not (folder / PLAN_FILE).is_file():
        raise InputError(f"{folder}: no checkpoint of a clone there ({FACTORS_FILE} and {PLAN_FILE} are expected)")
    try:
        text = (folder / PLAN_FILE).read_text(encoding="utf-8")
        read = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {PLAN_FILE} is damaged: {' '.join(str(error).split())}") from error
    version = read.get("format") if isinstance(read, dict) else None
    if version != FORMAT:
        raise InputError(
            f"{folder}: {PLAN_FILE} has format {version}, expected {FORMAT}; another version of lowrank-clone wrote it"
        )
    damaged = f"{folder}: {PLAN_FILE} is damaged"
    try:
        stored: Stored = _READER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{damaged}: `{'.'.join(map(str, first['loc']))}`: {first['msg'].lower()}") from error
    generated = {f"factor:{factor}" for factor in stored.links.values()}
    for name in sorted(generated ^ {name for name in stored.tensors if name.startswith("factor:")}):
        raise InputError(f"{damaged}: `{name}` " + ("is not stored" if name in generated else "generates nothing"))
    return stored
