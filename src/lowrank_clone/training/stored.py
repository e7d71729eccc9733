"""`plan.json` of a checkpoint: what its factors belong to, and how they hang on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError

FACTORS_FILE, PLAN_FILE = "factors.safetensors", "plan.json"
FORMAT = 2


@dataclass(frozen=True)
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
    kinds: dict[str, str]
    links: dict[str, str]
    taps: list[str]
    normalization: str
    tensors: list[str]


def read_stored(folder: Path) -> Stored:
    """`plan.json` of a checkpoint.

    Raises:
        InputError: There is none, or it is not one that this version writes.
    """
    if not (folder / FACTORS_FILE).is_file() or not (folder / PLAN_FILE).is_file():
        raise InputError(f"{folder}: no checkpoint of a clone there ({FACTORS_FILE} and {PLAN_FILE} are expected)")
    try:
        read = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {PLAN_FILE} is damaged: {' '.join(str(error).split())}") from error
    version = read.get("format") if isinstance(read, dict) else None
    if version != FORMAT:
        raise InputError(
            f"{folder}: {PLAN_FILE} has format {version}, expected {FORMAT}; another version of lowrank-clone wrote it"
        )
    missing = [field.name for field in fields(Stored) if field.name not in read]
    if missing or len(read) != len(fields(Stored)):
        raise InputError(
            f"{folder}: {PLAN_FILE} is damaged: " + (f"`{missing[0]}` is missing" if missing else "more keys")
        )
    return Stored(**read)
