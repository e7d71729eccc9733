"""The fields of `CloneArguments` and of `transformers.TrainingArguments` below it, read without importing either.

Importing them takes PyTorch and seconds; a misspelt key should be told at once. So the two classes' source is parsed:
names, annotations and plain defaults stand there as text. A test holds the result against the imported classes.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union


@dataclass(frozen=True)
class TrainingField:
    """One field: the type that a recipe's value must have, and its default (None where that is no literal)."""

    name: str
    hint: Any
    default: Any


@functools.cache
def training_fields() -> dict[str, TrainingField]:
    """Every field that the recipe's `training` section takes beside its own, by name."""
    spec = importlib.util.find_spec("transformers")  # finds the package and does not run it
    assert spec is not None and spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    theirs = [_parse(package / name) for name in ("training_args.py", "trainer_utils.py", "debug_utils.py")]
    ours = _parse(Path(__file__).parent.parent / "training" / "arguments.py")
    choices: dict[str, Any] = {name: hint for tree in theirs for name, hint in _enums(tree)}
    fields: dict[str, TrainingField] = {}
    for tree, name in ((theirs[0], "TrainingArguments"), (ours, "CloneArguments")):
        fields |= {field.name: field for field in _fields(tree, name, choices)}
    return fields


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _enums(tree: ast.Module) -> typing.Iterator[tuple[str, Any]]:
    """(name, the literal of its values) for each class of named text values."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
            assigned = [line.value for line in node.body if isinstance(line, ast.Assign)]
            values = tuple(value.value for value in assigned if isinstance(value, ast.Constant))
            yield node.name, Literal[values]


def _fields(tree: ast.Module, class_name: str, names: dict[str, Any]) -> typing.Iterator[TrainingField]:
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield TrainingField(node.target.id, _hint(node.annotation, names), _default(node.value))


def _hint(annotation: ast.expr, names: dict[str, Any]) -> Any:
    """The type of a recipe's value; a class that no recipe can hold leaves null alone."""
    text = ast.unparse(annotation)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value
    known = {**vars(typing), **names}
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    known |= {name: type(None) for name in used - known.keys() - vars(builtins).keys()}
    return _without_free_text(eval(text, known))


def _without_free_text(hint: Any) -> Any:
    """A choice's values are the only text that `TrainingArguments` takes, though it annotates `Choice | str`."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType) and any(
        typing.get_origin(option) is Literal and str in {type(value) for value in typing.get_args(option)}
        for option in options
    ):
        return Union[tuple(option for option in options if option is not str)]  # noqa: UP007 - built at run time
    return hint


def _default(value: ast.expr | None) -> Any:
    """The literal default of `x: int = 3` and of `x: int = field(default=3, ...)`."""
    if isinstance(value, ast.Call):
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
