"""Mistakes in a recipe as one line: the key, what it got, what it expected, and the nearest known key."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, one_line
from .fields import training_fields
from .schema import OPEN_FIELDS, SECTIONS

# What people call a field, and its name here.
ALIASES = {
    "alpha": "clone_weight",
    "batch_size": "per_device_train_batch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "block_size": "sequence_length",
    "column": "text_column",
    "context_length": "sequence_length",
    "d_model": "hidden_size",
    "conditions": "filter",
    "dataset": "sources",
    "dedup": "deduplicate",
    "datasets": "sources",
    "dim": "hidden_size",
    "epochs": "num_train_epochs",
    "eps": "adam_epsilon",
    "eval_batch_size": "per_device_eval_batch_size",
    "file": "path",
    "filters": "filter",
    "files": "sources",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "kd_weight": "kl_weight",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "mask_documents": "document_mask",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "max_tokens": "total_tokens",
    "model_name": "model",
    "model_name_or_path": "model",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "out_dir": "output_dir",
    "output": "output_dir",
    "repeats": "repeat",
    "scheduler": "lr_scheduler_type",
    "seq_len": "sequence_length",
    "seq_length": "sequence_length",
    "steps": "max_steps",
    "tokens": "total_tokens",
    "torch_dtype": "dtype",
    "train_batch_size": "per_device_train_batch_size",
    "val": "validation",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "wd": "weight_decay",
    "width": "hidden_size",
}

VALUE_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}

# pydantic's kinds of errors, in the words of a recipe.
_EXPECTED = {
    "int_type": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def input_error(error: ValidationError, folded: Mapping[str, Any]) -> InputError:
    """The most telling of pydantic's errors as one line: an unknown key explains a missing one, so it goes first."""
    errors = sorted(error.errors(), key=lambda item: item["type"] != "unexpected_keyword_argument")
    first = errors[0]
    path, value = _resolve(first["loc"], folded)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        inside = _dotted(path)  # a check of two fields together names them from there on, or whole
        return cause if str(cause).startswith(f"{inside}.") else InputError(f"{inside}.{cause}")
    if first["type"] == "unexpected_keyword_argument":
        return unknown_key(_dotted(path))
    if first["type"] == "missing":
        return _missing_key(_dotted([*path, first["loc"][-1]]), value)
    return InputError(wrong_value(path, value, [item for item in errors if _resolve(item["loc"], folded)[0] == path]))


def _resolve(loc: Sequence[int | str], tree: Any) -> tuple[list[int | str], Any]:
    """An error's location and the value there, without the names of union members that pydantic puts in between."""
    path: list[int | str] = []
    for step in loc:
        entries = dict(enumerate(tree)) if isinstance(tree, list) else tree
        if isinstance(entries, dict) and step in entries:
            path.append(step)
            tree = entries[step]
    return path, tree


def wrong_value(path: Sequence[int | str], value: Any, errors: Iterable[Mapping[str, Any]]) -> str:
    """`section.key: got 'x' (str), expected ...` for pydantic's errors about one value."""
    items = [error for error in errors if error["type"] != "missing"]
    expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
    choices = [choice for item in items for choice in _choices(item)]
    near = _nearest_choice(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    return f"{_dotted(path)}: got {show(value)}, expected {expected}{hint}"


def _expected(error: Mapping[str, Any]) -> str:
    if choices := _choices(error):
        shown = choices if len(choices) <= 12 else [*choices[:6], f"or {len(choices) - 6} others"]
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(shown)}"
    template = _EXPECTED.get(error["type"])
    if template is None:  # a validator's own text, as `Range` gives it
        return str(error.get("ctx", {}).get("error", error["msg"])).removeprefix("expected ")
    return template.format(**error.get("ctx", {}))


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The values that a choice takes; pydantic has them as text: 'a', 'b' or 'c'."""
    listed = error.get("ctx", {}).get("expected", "") if error["type"] == "literal_error" else ""
    return re.findall(r"[^\s,']+", listed.replace(" or ", ", "))


def _nearest_choice(value: str, choices: Sequence[str]) -> str | None:
    begun = [choice for choice in choices if value and choice.startswith(value)]
    return next(iter(begun + difflib.get_close_matches(value[:100], choices, n=1)), None)


def _missing_key(key: str, section: Any) -> InputError:
    head, _, last = key.rpartition(".")
    others = section.get(OPEN_FIELDS.get(head, ""), {})
    if misspelt := difflib.get_close_matches(last, others, n=1, cutoff=0.8):
        return unknown_key(f"{head}.{misspelt[0]}", [key])
    return InputError(f"{key}: missing, expected a value; add it to the recipe or give `{key}=...`")


def unknown_key(key: str, known: Sequence[str] | None = None, reason: str = "") -> InputError:
    """The error for a key that no section has: with the nearest known key, else with `reason` or what there is."""
    near = _nearest(key, list(_known_keys()) if known is None else known)
    shown = one_line(key, 100)
    if near is not None:
        return InputError(f"unknown key `{shown}`; did you mean `{near}`?")
    section = key.split(".")[0]
    keys = f"`{section}` takes {', '.join(keys_of(section))}" if section in SECTIONS else ""
    return InputError(f"unknown key `{shown}`; {reason or keys or 'sections are ' + ', '.join(SECTIONS)}")


def _known_keys() -> Iterator[str]:
    for section, kind in SECTIONS.items():
        yield section
        open_field = f"{section}.{OPEN_FIELDS.get(section)}"
        yield from (key for key in _keys_below(section, kind) if key != open_field)
    yield from (f"training.{key}" for key in training_fields())


def _keys_below(key: str, hint: Any) -> Iterator[str]:
    """The dotted keys inside a value of this type: of the dataclasses in it, those in lists counted from 0."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint).items():
            if typing.get_origin(inner) is not typing.ClassVar:
                yield f"{key}.{name}"
                yield from _keys_below(f"{key}.{name}", inner)
        return
    for part in typing.get_args(hint):
        yield from _keys_below(f"{key}.0" if typing.get_origin(hint) is list else key, part)


def keys_of(section: str) -> list[str]:
    """The section's own keys, without the field that holds an open section's other keys."""
    fields = dataclasses.fields(SECTIONS[section])
    return [field.name for field in fields if field.name != OPEN_FIELDS.get(section)]


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key whose last part is most like this one's or its alias; the path before it breaks ties."""
    head, _, last = key[:100].rpartition(".")
    last = ALIASES.get(last.lower(), last)

    def likeness(candidate: str) -> tuple[float, float]:
        other_head, _, other_last = candidate.rpartition(".")
        return _ratio(last, other_last), _ratio(head, other_head)

    best = max(known, key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def first_leaf(key: str, value: Any) -> str:
    """The first dotted key under an unknown section, which says more about what was meant than the section alone."""
    while isinstance(value, dict) and value:
        inner = next(iter(value))
        key, value = f"{key}.{inner}", value[inner]
    return key


def _dotted(path: Iterable[int | str]) -> str:
    """A location as the user writes it: open sections' other keys stand in the section itself."""
    steps = list(path)
    if len(steps) > 1 and OPEN_FIELDS.get(str(steps[0])) == steps[1]:
        del steps[1]
    return ".".join(str(step) for step in steps)


def show(value: Any) -> str:
    """A value in an error message: short, on one line, with its type."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
