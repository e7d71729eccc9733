"""The student's overrides of the model's config: names, types and signs against the teacher's own values."""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..ranges import Range, is_finite
from .messages import VALUE_KINDS, keys_of, show, unknown_key

# By a word of the field's name; every family of transformers names such fields so.
_RANGES = {
    "eps": Range(0, 1, above=True),
    "epsilon": Range(0, 1, above=True),
    "dropout": Range(0, 0.99),
    "pdrop": Range(0, 0.99),
    "prob": Range(0, 1),
    "initializer": Range(0, 10),
    # Token ids, where -1 is none, and terms of a training loss, where 0 switches it off.
    "id": Range(-1, 1e9, whole=True),
    "coef": Range(0, 1e6),
    "noise": Range(0, 1e6),
}


def check_student_overrides(overrides: Mapping[str, Any], teacher_config: Mapping[str, Any]) -> None:
    """Check the student's overrides against the teacher's config, as `PretrainedConfig.to_dict` gives it.

    Raises:
        InputError: The config has no such field, or its value is of another type or out of range.
    """
    for key, value in overrides.items():
        if key not in teacher_config:
            known = [f"student.{name}" for name in [*keys_of("student"), *teacher_config]]
            raise unknown_key(f"student.{key}", known, "it is neither a student key nor a field of the model's config")
        old = teacher_config[key]
        if old is not None and value is not None and not same_kind(value, old):
            expected = VALUE_KINDS.get(type(old), type(old).__name__)
            raise InputError(f"student.{key}: got {show(value)}, expected {expected}, as the teacher's {show(old)}")
        _check_number(f"student.{key}", value, old)


def _check_number(key: str, value: Any, old: Any) -> None:
    """Numbers inside lists and mappings too; a config's numbers keep their sign: 0 layers or a base of -1 is a slip."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_number(f"{key}.{name}", inner, old.get(name) if isinstance(old, dict) else None)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_number(f"{key}.{i}", inner, None)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        words = key.rpartition(".")[2].split("_")
        limit = next((limit for word, limit in _RANGES.items() if word in words), None)
        if limit is None and isinstance(old, int | float) and not isinstance(old, bool):
            limit = Range(0, 1e12, above=isinstance(old, float) and old > 0) if old >= 0 else None
        if not is_finite(value) or (limit is not None and not limit.holds(value)):
            beside = f", as the teacher's {old}" if old is not None else ""
            raise InputError(f"{key}: got {show(value)}, expected {limit or 'a finite number'}{beside}")


def same_kind(value: Any, old: Any) -> bool:
    """Whether a config field that holds `old` may hold `value`: the same type, or an integer for a float."""
    if isinstance(old, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(old)
