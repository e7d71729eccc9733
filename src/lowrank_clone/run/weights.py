"""What a teacher's weight files hold, by their headers, and what loading them left over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..errors import InputError

_CODES = ("F8", "F6", "F4", "I8", "U8", "I4", "U4")  # safetensors' names of types that need a scale to be numbers


def check_stored(folder: Path, as_floats: bool) -> None:
    """Refuse weight files that are damaged, incomplete or, where floats are expected, codes that need a scale.

    Raises:
        InputError: A shard is missing or unreadable, or a tensor is stored in such a type.
    """
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"teacher.model: `{index}` is damaged ({type(error).__name__}); fetch it again") from error
        missing = [name for name in named if not (folder / str(name)).is_file()]
        if missing:
            raise InputError(
                f"teacher.model: {len(missing)} of {len(named)} weight files are missing in `{folder}`, the first "
                f"`{missing[0]}`; fetch them again"
            )
        shards = [folder / str(name) for name in named]
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                names = list(file.keys())
                types = {name: str(file.get_slice(name).get_dtype()) for name in names} if as_floats else {}
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"teacher.model: `{shard}` is damaged ({reason}); fetch it again") from error
        codes = [name for name, kind in types.items() if kind.startswith(_CODES)]
        if codes:
            raise InputError(
                f"teacher.model: `{codes[0]}` in `{shard.name}` is stored as {types[codes[0]]}, which stands for "
                "numbers only with its scales, and config.json has no `quantization_config` that says how; expected "
                "float32, bfloat16 or float16; use the unquantised model or a GGUF file"
            )


def check_leftovers(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse a teacher whose checkpoint and architecture do not meet.

    Whole modules that only the checkpoint has are left out on purpose (layers that predict further tokens, towers). But
    a tensor of a module that the model has belongs to what that module computes: a scale, a zero point, a bias.

    Raises:
        InputError: A tensor of the architecture is missing or of another shape, or one of its modules' is left over.
    """
    if info["missing_keys"]:
        raise InputError(
            f"teacher.model: `{name}` lacks {len(info['missing_keys'])} tensors of its architecture, the "
            f"first `{sorted(info['missing_keys'])[0]}`; expected a complete checkpoint"
        )
    if info["mismatched_keys"]:
        raise InputError(
            f"teacher.model: `{name}` holds {len(info['mismatched_keys'])} tensors of other shapes than its config "
            f"says, the first {min(map(str, info['mismatched_keys']))}; its config.json is not that of its weights"
        )
    owners = {module for module, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))}
    left = sorted(key for key in info["unexpected_keys"] if key.rpartition(".")[0] in owners)
    if left:
        raise InputError(
            f"teacher.model: `{name}` holds {len(left)} tensors that its architecture does not read, the first "
            f"`{left[0]}`; a scale or bias that is dropped makes another model; use an unquantised checkpoint whose "
            "config.json fits it"
        )
