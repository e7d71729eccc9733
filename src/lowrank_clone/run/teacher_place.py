"""Where a teacher is: a folder, a .gguf file, or on the Hub. Imports no PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import InputError


def is_gguf(model: str) -> bool:
    """Whether a teacher's name means a GGUF file."""
    return model.endswith(".gguf")


def local_teacher(model: str) -> Path | None:
    """The folder or .gguf file that a teacher's name means; None for one on the Hub.

    Raises:
        InputError: Nothing loadable is there.
    """
    path = Path(model).expanduser()
    if is_gguf(model):
        if not path.is_file():
            raise InputError(f"teacher.model: no file `{model}`; expected a Hub id, a folder or a .gguf file")
        if importlib.util.find_spec("gguf") is None:
            raise InputError(
                "teacher.model: reading a .gguf file needs the package gguf; pip install 'lowrank-clone[gguf]'"
            )
        return path
    if model.startswith((".", "/", "~")) or path.exists():
        if not (path / "config.json").is_file():
            raise InputError(f"teacher.model: no config.json in `{model}`; expected a Hub id, a folder or a .gguf file")
        return path
    return None
