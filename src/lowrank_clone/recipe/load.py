"""The recipe: one strict YAML file with the sections teacher, student, method, data and training.

`load_recipe` turns a file or the name of a shipped recipe into a checked `Recipe`; `dump_recipe` writes it back. Two
sections are open: any other key of `student` overrides a field of the model's config, and `training` takes any field of
`transformers.TrainingArguments`. Every mistake is an `InputError` of one line that names the key, says what it got and
what it expected, and where a key is unknown suggests the nearest one.

Scalars are read by YAML 1.2 rules: `3e-4` is a number, and only `true` and `false` are booleans, so that
`eval_strategy: no` stays text.
"""

import difflib
import functools
import json
import os
import stat
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import InputError, one_line
from .messages import first_leaf, input_error, keys_of, show, unknown_key
from .overrides import apply_override
from .schema import LENGTHS, OPEN_FIELDS, SECTIONS, Recipe
from .training import check_training_argument
from .yaml12 import Dumper, parse_yaml

_RECIPES = resources.files(__package__) / "shipped"
_DEEPEST = 40
_LARGEST = 1_000_000  # bytes; a recipe has a few thousand


@functools.cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, apply overrides such as `training.learning_rate=3e-4`, and check it.

    Raises:
        InputError: the file cannot be read or is not a mapping in valid YAML, a key is unknown, missing or given twice,
            or a value has the wrong type or is out of range.
    """
    tree, said = _read(path_or_name), dict[str, Any]()
    for override in overrides:
        apply_override(tree, override)
        if override.partition("=")[0].strip().startswith("training."):
            apply_override(said, override)
    _keep_one_length(tree.get("training"), said.get("training"))
    return parse_recipe(tree)


def _keep_one_length(training: Any, said_later: Any) -> None:
    """A length of the run that is said later, on the command line or over a base, replaces another way of saying it."""
    if isinstance(training, dict) and isinstance(said_later, dict):
        given = [key for key in LENGTHS if said_later.get(key) not in (None, -1)]
        for key in LENGTHS:
            if given and key not in said_later:
                training.pop(key, None)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Check a recipe that was read from YAML already.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    _check_texts("", tree)
    for key in tree:
        if key not in SECTIONS:
            raise unknown_key(first_leaf(key, tree[key]))
    folded = {name: _fold(name, tree.get(name)) for name in SECTIONS}
    try:
        # Of pydantic's strict modes only the one for JSON takes mappings for dataclasses and lists for tuples.
        recipe = _adapter().validate_json(json.dumps(folded), strict=True)
    except ValidationError as error:
        raise input_error(error, folded) from None
    for key, value in recipe.training.arguments.items():
        check_training_argument(key, value)
    _check_lengths(recipe)
    return recipe


def _check_lengths(recipe: Recipe) -> None:
    """One way of saying how long the run is, not two of which transformers would drop one without a word."""
    lengths = {"total_tokens": recipe.training.total_tokens, **recipe.training.arguments}
    given = [key for key in LENGTHS if lengths.get(key) not in (None, -1)]
    if len(given) > 1:
        raise InputError(
            f"training.{given[1]}: got {lengths[given[1]]} beside training.{given[0]}, expected only one of the "
            f"two; remove it, or set training.{given[0]} to {'null' if given[0] == LENGTHS[0] else '-1'}"
        )


def _check_texts(key: str, value: Any) -> None:
    """Text that no file can be named by and no library takes, and nesting beyond any field's."""
    if key.count(".") > _DEEPEST:
        raise InputError(f"{one_line(key, 100)}: nested too deeply; expected at most {_DEEPEST} levels")
    if isinstance(value, str) and ("\0" in value or (not value.isascii() and _is_broken(value))):
        raise InputError(f"{key}: got {show(value)}, expected text without NUL characters and broken Unicode")
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        _check_texts(f"{key}.{name}".lstrip("."), inner)


def _is_broken(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads an equal recipe from it."""
    tree = _adapter().dump_python(recipe, mode="json")
    for section, rest in OPEN_FIELDS.items():
        tree[section].update(tree[section].pop(rest))
    ordered = {name: tree[name] for name in SECTIONS}
    return yaml.dump(ordered, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(file.name.removesuffix(".yaml") for file in _RECIPES.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe that comes with the library, as its file has it.

    Raises:
        InputError: There is none of this name.
    """
    if name not in (names := shipped_recipes()):
        near = difflib.get_close_matches(name[:100], names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
        raise InputError(f"no recipe `{one_line(name, 100)}` comes with the library; {hint}")
    return (_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def _read(path_or_name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's tree, laid over that of the recipe that it names as `base`."""
    text = recipe_text(path_or_name) if path_or_name in shipped_recipes() else _read_file(path_or_name)
    tree = parse_yaml(text, path_or_name)
    if tree is None:
        raise InputError(f"{path_or_name}: the recipe is empty; expected the sections {', '.join(SECTIONS)}")
    if not isinstance(tree, dict):
        raise InputError(f"{path_or_name}: got {show(tree)}, expected a mapping of {', '.join(SECTIONS)}")
    _check_texts("", tree)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{path_or_name}: base: got {show(base)}, expected the name or path of another recipe")
    if base not in shipped_recipes():
        base = os.path.normpath(Path(path_or_name).parent / Path(base).expanduser())
    if base in (*above, os.path.normpath(path_or_name)):
        raise InputError(f"{path_or_name}: base: `{base}` rests on this recipe itself; expected another one")
    below = _read(base, (*above, os.path.normpath(path_or_name)))
    _keep_one_length(below.get("training"), tree.get("training"))
    return _overlay(below, tree)


def _overlay(base: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key; anything else, lists included, in place of what was there."""
    for key, value in tree.items():
        old = base.get(key)
        base[key] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return base


def _read_file(path: str) -> str:
    shown = f"recipe `{one_line(path, 200)}`"
    names = shipped_recipes()
    try:
        found = os.stat(os.path.expanduser(path))
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise InputError(f"{shown}: cannot be read (it is {kind}); expected a YAML file or the name of a recipe")
        if found.st_size > _LARGEST:
            raise InputError(f"{shown}: has {found.st_size:,} bytes, expected at most {_LARGEST:,}; is it a recipe?")
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path[:100], names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"shipped recipes: {', '.join(names)}"
        raise InputError(f"{shown}: no such file or shipped recipe; {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}); expected a YAML file") from None


def _fold(section: str, content: Any) -> Any:
    """Move an open section's other keys into the field that holds them; an empty section is one of defaults."""
    if content is None:
        return {}
    if section not in OPEN_FIELDS or not isinstance(content, dict):
        return content
    own = {key: value for key, value in content.items() if key in keys_of(section)}
    return own | {OPEN_FIELDS[section]: {key: value for key, value in content.items() if key not in own}}
