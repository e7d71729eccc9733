"""A student saved so that transformers 4 and 5, and what reads their files, compute the same from it.

transformers 5 keeps all of the rotary embedding in `rope_parameters`, which transformers 4 does not know: it would take
base 10,000 and no scaling without a word. So config.json says it in the older fields too, and a saved tokenizer goes by
the class that both versions have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

# What Trainer changes in the config of a model that it trains.
_TRAINERS = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_CONFIG = "tokenizer_config.json"


def save_for_readers(
    student: PreTrainedModel,
    folder: str | Path,
    tokenizer: Any = None,
    teacher: PretrainedConfig | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a student and its tokenizer into `folder`, as `save_pretrained` does, for older readers too.

    Args:
        tokenizer: Or any other processing class that has `save_pretrained`.
        teacher: The config whose values are written where a Trainer put its own into the student's.
        weights: The student's state where it holds parts of it only.
    """
    folder = Path(folder)
    student.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    theirs = {} if teacher is None else teacher.to_dict()
    config |= {name: theirs[name] for name in _TRAINERS if name in theirs}
    _write(folder / CONFIG_NAME, with_older_fields(type(student.config), config))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        if (folder / TOKENIZER_CONFIG).is_file():
            fields = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
            _write(folder / TOKENIZER_CONFIG, _older_tokenizer(fields))


def with_older_fields(config_class: type[PretrainedConfig], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json with those beside them that transformers 4 reads the same from.

    An older field is left out where it would make transformers 5 read something else.
    """
    read = config_class.from_dict(json.loads(json.dumps(config))).to_dict()
    rope = _older_rope(config.get("rope_parameters") or {})
    # A field that was renamed goes by its older name too.
    renamed = {older: config[name] for older, name in config_class.attribute_map.items() if name in config}
    found = dict(config)
    for fields in (rope, {"rope_theta": rope.get("rope_theta")}, {"torch_dtype": config.get("dtype")}, renamed):
        both = {**found, **{key: value for key, value in fields.items() if value is not None and key not in found}}
        again = config_class.from_dict(json.loads(json.dumps(both))).to_dict()
        if all(again[key] == value for key, value in read.items()):
            found = both
    return dict(sorted(found.items()))


def _older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding in the fields of transformers 4; a second one of layers with a window has a base only."""
    if isinstance(rope.get("full_attention"), Mapping):
        local = rope.get("sliding_attention") or {}
        return _older_rope(rope["full_attention"]) | {"rope_local_base_freq": local.get("rope_theta")}
    scaled = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return {
        "rope_theta": rope.get("rope_theta"),
        "partial_rotary_factor": rope.get("partial_rotary_factor"),
        "rope_scaling": scaled if rope.get("rope_type", "default") != "default" else None,
    }


def _older_tokenizer(fields: Mapping[str, Any]) -> dict[str, Any]:
    older = dict(fields)
    if older.get("tokenizer_class") == "TokenizersBackend":  # what transformers 5 calls it
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(older.get("extra_special_tokens"), list):  # a mapping of names in transformers 4
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    return older


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
