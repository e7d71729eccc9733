"""The student's config: the teacher's at another residual width, in a form that its saved config.json loads from."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from ..errors import InputError
from .architecture import cannot_build, on_meta, width_field
from .decoder import decoder_config
from .equivalent import equivalents
from .noise import training_noise
from .pieces import shapes_of

# What every config has says how a model is stored or called, not which numbers it computes.
_NOT_ARCHITECTURE = {*PretrainedConfig().to_dict(), "quantization_config", "auto_map", "_name_or_path", "is_decoder"}


def check_request(teacher: PretrainedConfig, hidden_size: int, overrides: Mapping[str, Any]) -> None:
    """Refuse what no plan is needed to refuse: a width that is none, and overrides that say what kind of model it is.

    Raises:
        InputError: It is such a width or override.
    """
    width = teacher.hidden_size
    if type(hidden_size) is not int or hidden_size < 1:
        raise InputError(f"student.hidden_size: got {hidden_size!r}, expected a positive integer")
    if hidden_size >= width:
        raise InputError(
            f"student.hidden_size: got {hidden_size}, expected less than the teacher's {width}; "
            "a clone is narrower than its teacher"
        )
    if hidden_size == 1:
        raise InputError(
            f"student.hidden_size: got 1, of which a norm leaves no more than a sign; expected more, below {width}"
        )
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise InputError(f"student: got {overrides!r}, expected fields of its config, as {{'rms_norm_eps': 1e-5}}")
    for key, value in training_noise(overrides).items():
        raise InputError(f"student.{key}: got {value:g}, expected 0; a clone is trained without dropout and jitter")
    fields = teacher.to_dict()
    for key in overrides:
        if key in _NOT_ARCHITECTURE or key == width_field(teacher):
            raise InputError(
                f"student.{key}: got {overrides[key]!r}; a student is its teacher's architecture at another "
                "`student.hidden_size`, and this field says what kind of model it is or how it is stored; leave it out"
            )
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"student.{key}: no such field in the config of `{teacher.model_type}`{hint}")


def configs(
    teacher: PretrainedConfig,
    hidden_size: int,
    overrides: Mapping[str, Any],
    explicit_head_dim: bool,
    other_types: bool,
) -> tuple[PretrainedConfig, PretrainedConfig]:
    """The teacher's config and the student's, at residual width `hidden_size`, with every head kept at its own width.

    The two are of the teacher's type, or, where its config class refuses the width, of an equivalent one: the student
    alone if its parameters have the teacher's names, both if the equivalent type cuts fused matrices.

    Args:
        explicit_head_dim: A family that has no `head_dim` of its own divides `hidden_size` by the heads, so the
            teacher's quotient is written down; the few that mean something else by the field are planned without.
        other_types: Whether to look for equivalent types, which takes seconds.

    Raises:
        InputError: No type takes this width.
    """
    fields = _fields(teacher, explicit_head_dim)
    changed = {**fields, **overrides, width_field(teacher): hidden_size}
    try:
        return teacher, decoder_config(own_config(teacher, hidden_size, overrides, explicit_head_dim))
    except InputError:
        raise
    except Exception as error:  # each family's config refuses in its own way
        for other in equivalents(type(teacher), fields) if other_types else ():
            try:
                wide, student = other.config(fields), other.config(changed)
            except Exception:  # this one refuses the width too
                continue
            uncut = shapes_of(on_meta(wide)).keys() == shapes_of(on_meta(teacher)).keys()
            return teacher if uncut else wide, student
        raise cannot_build(teacher.model_type, hidden_size, error) from error


def own_config(
    teacher: PretrainedConfig, hidden_size: int, overrides: Mapping[str, Any], explicit_head_dim: bool
) -> PretrainedConfig:
    """The student's config of the teacher's own type; see `configs`.

    Raises:
        Exception: The type refuses the width, in a way of its own.
    """
    changed = {**_fields(teacher, explicit_head_dim), **overrides, width_field(teacher): hidden_size}
    # Through `from_dict`, so that what is planned is what a reader of the saved config.json will build.
    return type(teacher).from_dict(copy.deepcopy(changed))


def _fields(teacher: PretrainedConfig, explicit_head_dim: bool) -> dict[str, Any]:
    fields = teacher.to_dict()
    if explicit_head_dim and fields.get("head_dim") is None and fields.get("num_attention_heads"):
        fields["head_dim"] = teacher.hidden_size // fields["num_attention_heads"]
    for transient in ("quantization_config", "auto_map", "_name_or_path", "architectures"):
        fields.pop(transient, None)
    return fields
