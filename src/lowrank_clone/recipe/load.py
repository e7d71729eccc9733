"""The recipe: one strict YAML file with the sections teacher, student, method, data and training.

`load_recipe` turns a file or the name of a shipped recipe into a checked `Recipe`; `dump_recipe` writes it back. Two
sections are open: any other key of `student` overrides a field of the model's config, and `training` takes any field of
`transformers.TrainingArguments`. Every mistake is an `InputError` of one line that names the key, says what it got and
what it expected, and where a key is unknown suggests the nearest one.

Scalars are read by YAML 1.2 rules: `3e-4` is a number, and only `true` and `false` are booleans, so that
`eval_strategy: no` stays text.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import InputError
from .messages import VALUE_KINDS, first_leaf, input_error, keys_of, same_kind, show, unknown_key
from .schema import OPEN_FIELDS, SECTIONS, Recipe
from .training import check_training_argument
from .yaml12 import Dumper, parse_yaml

_RECIPES = resources.files(__package__) / "shipped"


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, apply overrides such as `training.learning_rate=3e-4`, and check it.

    Raises:
        InputError: the file cannot be read or is not a mapping in valid YAML, a key is unknown, missing or given twice,
            or a value has the wrong type or is out of range.
    """
    tree = _read(path_or_name)
    for override in overrides:
        _apply_override(tree, override)
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Check a recipe that was read from YAML already.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    for key in tree:
        if key not in SECTIONS:
            raise unknown_key(first_leaf(key, tree[key]))
    folded = {name: _fold(name, tree.get(name)) for name in SECTIONS}
    try:
        # Of pydantic's strict modes only the one for JSON takes mappings for dataclasses and lists for tuples.
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(folded), strict=True)
    except ValidationError as error:
        raise input_error(error, folded) from None
    for key, value in recipe.training.arguments.items():
        check_training_argument(key, value)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads an equal recipe from it."""
    tree = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    for section, rest in OPEN_FIELDS.items():
        tree[section].update(tree[section].pop(rest))
    ordered = {name: tree[name] for name in SECTIONS}
    return yaml.dump(ordered, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(file.name.removesuffix(".yaml") for file in _RECIPES.iterdir() if file.name.endswith(".yaml"))


def check_student_overrides(overrides: Mapping[str, Any], teacher_config: Mapping[str, Any]) -> None:
    """Check the student's overrides against the teacher's config, as `PretrainedConfig.to_dict` gives it.

    Raises:
        InputError: the config has no such field, or its value is of another type.
    """
    for key, value in overrides.items():
        if key not in teacher_config:
            known = [f"student.{name}" for name in [*keys_of("student"), *teacher_config]]
            raise unknown_key(f"student.{key}", known, "it is neither a student key nor a field of the model's config")
        old = teacher_config[key]
        if old is not None and value is not None and not same_kind(value, old):
            expected = VALUE_KINDS.get(type(old), type(old).__name__)
            raise InputError(f"student.{key}: got {show(value)}, expected {expected}, as the teacher's {show(old)}")


def _read(path_or_name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's tree, laid over that of the recipe that it names as `base`."""
    if path_or_name in shipped_recipes():
        text = (_RECIPES / f"{path_or_name}.yaml").read_text(encoding="utf-8")
    else:
        text = _read_file(path_or_name)
    tree = parse_yaml(text, path_or_name)
    if tree is None:
        raise InputError(f"{path_or_name}: the recipe is empty; expected the sections {', '.join(SECTIONS)}")
    if not isinstance(tree, dict):
        raise InputError(f"{path_or_name}: got {show(tree)}, expected a mapping of {', '.join(SECTIONS)}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{path_or_name}: base: got {show(base)}, expected the name or path of another recipe")
    if base not in shipped_recipes():
        base = os.path.normpath(Path(path_or_name).parent / base)
    if base in (*above, os.path.normpath(path_or_name)):
        raise InputError(f"{path_or_name}: base: `{base}` rests on this recipe itself; expected another one")
    return _overlay(_read(base, (*above, os.path.normpath(path_or_name))), tree)


def _overlay(base: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; anything else, lists included, in place of what was there."""
    for key, value in tree.items():
        old = base.get(key)
        base[key] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return base


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = shipped_recipes()
        near = difflib.get_close_matches(path, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"shipped recipes: {', '.join(names)}"
        raise InputError(f"recipe `{path}`: no such file or shipped recipe; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"recipe `{path}`: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"recipe `{path}`: cannot be read ({error.strerror}); expected a YAML file") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"override `{override}`: expected `section.key=value`, as in `training.learning_rate=3e-4`")
    node: Any = tree
    for depth, part in enumerate(parts):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            holder = ".".join(parts[:depth])
            raise InputError(f"override `{override}`: `{holder}` is {show(node)}, which has no `{part}`")
        if depth == len(parts) - 1:
            node[index] = parse_yaml(text, f"override `{override}`")
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def _fold(section: str, content: Any) -> Any:
    """Move an open section's other keys into the field that holds them; an empty section is one of defaults."""
    if content is None:
        return {}
    if section not in OPEN_FIELDS or not isinstance(content, dict):
        return content
    own = {key: value for key, value in content.items() if key in keys_of(section)}
    return own | {OPEN_FIELDS[section]: {key: value for key, value in content.items() if key not in own}}
