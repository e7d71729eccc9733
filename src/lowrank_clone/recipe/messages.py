"""Mistakes in a recipe as one line: the key, what it got, what it expected, and the nearest known key."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..data.config import SourceConfig
from ..errors import InputError
from ..training.arguments import TRAINING_FIELDS
from .schema import OPEN_FIELDS, SECTIONS

VALUE_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "at least {min_length} entries",
    "string_too_short": "text of at least {min_length} characters",
}


def input_error(error: ValidationError, folded: Mapping[str, Any]) -> InputError:
    """The most telling of pydantic's errors as one line: an unknown key explains a missing one, so it goes first."""
    errors = sorted(error.errors(), key=lambda item: item["type"] != "unexpected_keyword_argument")
    first = errors[0]
    path, value = _resolve(first["loc"], folded)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
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
    """The line for a value that its key does not take."""
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
    if template is None:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    return template.format(**error.get("ctx", {}))


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The values that a choice takes; pydantic has them as text: 'a', 'b' or 'c'."""
    listed = error.get("ctx", {}).get("expected", "") if error["type"] in ("literal_error", "enum") else ""
    return re.findall(r"[^\s,']+", listed.replace(" or ", ", "))


def _nearest_choice(value: str, choices: Sequence[str]) -> str | None:
    begun = [choice for choice in choices if value and choice.startswith(value)]
    return next(iter(begun + difflib.get_close_matches(value, choices, n=1)), None)


def _missing_key(key: str, section: Any) -> InputError:
    rest = section.get(OPEN_FIELDS.get(key.split(".")[0], ""), {})
    for misspelt in rest:
        if _likeness(misspelt, key.split(".")[-1]) >= 0.8:
            return unknown_key(f"{key.rpartition('.')[0]}.{misspelt}", [key])
    return InputError(f"{key}: missing, expected a value; add it to the recipe or give `{key}=...`")


def unknown_key(key: str, known: Sequence[str] | None = None, reason: str = "") -> InputError:
    """The error for a key that nobody knows, with the nearest of the known ones."""
    near = _nearest(key, list(_known_keys()) if known is None else known)
    if near is not None:
        return InputError(f"unknown key `{key}`; did you mean `{near}`?")
    section = key.split(".")[0]
    keys = f"`{section}` takes {', '.join(keys_of(section))}" if section in SECTIONS else ""
    return InputError(f"unknown key `{key}`; {reason or keys or 'sections are ' + ', '.join(SECTIONS)}")


def _known_keys() -> Iterator[str]:
    for section in SECTIONS:
        yield section
        yield from (f"{section}.{key}" for key in keys_of(section))
    for sources in ("sources", "validation"):
        yield from (f"data.{sources}.0.{field.name}" for field in dataclasses.fields(SourceConfig))
    yield from (f"training.{key}" for key in TRAINING_FIELDS)


def keys_of(section: str) -> list[str]:
    """The keys of a section but for the field that holds its open ones."""
    fields = dataclasses.fields(SECTIONS[section])
    return [field.name for field in fields if field.name != OPEN_FIELDS.get(section)]


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key whose last part is most like this one's; the rest of the path breaks ties."""
    head, _, last = key.rpartition(".")

    def score(candidate: str) -> tuple[float, float]:
        other_head, _, other_last = candidate.rpartition(".")
        return _likeness(last, other_last), difflib.SequenceMatcher(None, head, other_head).ratio()

    best = max(known, key=score)
    return best if score(best)[0] >= 0.6 else None


def _likeness(short: str, full: str) -> float:
    """How well one name stands for another, from 0 to 1; initials (`lr`) and some of the words (`batch_size`) count."""
    words = full.split("_")
    if short != full and short == "".join(word[:1] for word in words):
        return 0.75
    if short != full and set(short.split("_")) <= set(words):
        return 0.7
    return difflib.SequenceMatcher(None, short, full).ratio()


def first_leaf(key: str, value: Any) -> str:
    """The dotted key of the first value inside `value`."""
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


def same_kind(value: Any, old: Any) -> bool:
    """Whether a config's field of value `old` can take `value`; an integer is a number too."""
    if isinstance(old, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(old)
