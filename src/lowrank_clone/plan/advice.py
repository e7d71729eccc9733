"""What would make a refused request succeed: found by planning it, with as few layers as show every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from transformers import PretrainedConfig

from ..errors import InputError
from .architecture import few_layers, on_meta, width_field
from .pieces import Shapes, shapes_of
from .student_config import own_config

Plans = Callable[[PretrainedConfig, int, Mapping[str, Any]], object]
Fields = dict[str, Any]
# A field that multiplies `hidden_size` is a small number; a larger one is a size of its own.
_LARGEST_FACTOR = 16


def advice(teacher: PretrainedConfig, hidden_size: int, overrides: Mapping[str, Any], plans: Plans) -> str:
    """The end of an error's text: an override to leave out, fields to set, or near widths that work; or nothing.

    Args:
        plans: Makes a plan of a teacher, a width and overrides, or raises an InputError.
    """
    small = _small(teacher)
    if small is None:
        return ""

    def works(width: int, fields: Mapping[str, Any]) -> bool:
        try:
            plans(small, width, fields)
        except InputError:
            return False
        return True

    for key in overrides:
        if works(hidden_size, {k: v for k, v in overrides.items() if k != key}):
            return f"; student.{key} = {overrides[key]!r} is in the way: leave it out"
    kept = _inner_widths_kept(small, hidden_size, overrides)
    if kept and works(hidden_size, {**overrides, **kept}):
        named = ", ".join(f"student.{key}: {value}" for key, value in kept.items())
        return f"; set {named}, which keeps the teacher's inner widths"
    near = {n for unit in _units(teacher) for n in (hidden_size // unit * unit, (hidden_size // unit + 1) * unit)}
    good = []
    for width in sorted(n for n in near if 1 < n < teacher.hidden_size and n != hidden_size):
        kept = _inner_widths_kept(small, width, overrides)
        if works(width, {**overrides, **kept}):
            good.append(f"{width}" + "".join(f" with student.{key}: {value}" for key, value in kept.items()))
    return f"; widths near it that can be had: {', '.join(good)}" if good else ""


def _units(teacher: PretrainedConfig) -> set[int]:
    """What a family may want `hidden_size` to be a multiple of: its heads, a half or a quarter of its width."""
    width = teacher.hidden_size
    return {teacher.to_dict().get("num_attention_heads") or 1, *(width // n for n in (2, 4) if width % n == 0)}


def _inner_widths_kept(teacher: PretrainedConfig, hidden_size: int, overrides: Mapping[str, Any]) -> Fields:
    """Factors of `hidden_size` in the config, raised so that what they make of it is what it is in the teacher.

    A family that makes an inner width of `hidden_size` times a field (`expand` of state-space layers) keeps it so. Of
    all small numbers those are taken, one after the other, that leave fewest parameters of another inner width.
    """
    wide = shapes_of(on_meta(teacher))
    factors = {}
    for key, value in teacher.to_dict().items():
        if type(value) not in (int, float) or not 0 < value <= _LARGEST_FACTOR or key == width_field(teacher):
            continue
        factor = Fraction(value) * teacher.hidden_size / hidden_size
        if key not in overrides and (type(value) is float or factor.denominator == 1):
            factors[key] = type(value)(factor)
    chosen: Fields = {}
    left = _misfits(teacher, wide, hidden_size, overrides)
    while left and factors:
        counts = {k: _misfits(teacher, wide, hidden_size, {**overrides, **chosen, k: v}) for k, v in factors.items()}
        best = min(counts, key=lambda key: counts[key])
        if counts[best] >= left:
            break
        left, chosen[best] = counts[best], factors.pop(best)
    return chosen


def _misfits(teacher: PretrainedConfig, wide: Shapes, hidden_size: int, fields: Mapping[str, Any]) -> int:
    """How many parameters differ from the teacher's in more than the residual width; all, if no model can be made."""
    counts = [len(wide) + 1]
    for explicit_head_dim in (True, False):
        try:
            narrow = shapes_of(on_meta(own_config(teacher, hidden_size, fields, explicit_head_dim)))
        except Exception:  # each family's config refuses in its own way
            continue
        fit = [
            _fits(wide[name], narrow[name], teacher.hidden_size, hidden_size) for name in narrow.keys() & wide.keys()
        ]
        counts.append(len(narrow.keys() ^ wide.keys()) + fit.count(False))
    return min(counts)


def _fits(wide: tuple[int, ...], narrow: tuple[int, ...], d_t: int, d_s: int) -> bool:
    changed = [pair for pair in zip(wide, narrow, strict=False) if pair[0] != pair[1]]
    return len(wide) == len(narrow) and changed in ([], [(d_t, d_s)])


def _small(teacher: PretrainedConfig) -> PretrainedConfig | None:
    try:
        small = type(teacher).from_dict(copy.deepcopy(few_layers(teacher.to_dict())))
        on_meta(small)
        return small
    except Exception:  # a config may count its layers in more ways than one
        return None
