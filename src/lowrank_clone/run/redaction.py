"""A recipe as it may be written down: without secrets, and in a model card without the paths of one machine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..recipe.schema import Recipe

_SECRET_KEY = re.compile(r"(.*_)?(token|tokens?_file|secret|password|passwd|key|credentials?)", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"\b(hf|hf_oauth|api_org|sk|ghp|gho|github_pat)_\w{16,}|\bsk-\w{16,}")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "(hidden)"


def without_secrets(recipe: Recipe) -> Recipe:
    """The recipe without the training arguments that are secrets (`hub_token`), and without tokens inside of texts."""
    dropped: list[str] = []
    arguments = _drop_secrets(recipe.training.arguments, dropped)
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, arguments=arguments))

    def hide(text: str) -> str:
        for secret in dropped:
            text = text.replace(secret, HIDDEN)
        return _LOGIN.sub("", _SECRET_TEXT.sub(HIDDEN, text))

    hidden: Recipe = _map_texts(recipe, hide)
    return hidden


def for_a_card(recipe: Recipe) -> Recipe:
    """`without_secrets`, with the last part alone of each absolute path: the rest tells nobody else anything."""
    card: Recipe = _map_texts(without_secrets(recipe), _last_part)
    return card


def _drop_secrets(tree: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            kept[key] = _drop_secrets(value, dropped)
        elif isinstance(value, str) and _SECRET_KEY.fullmatch(key):
            dropped += [value] if value else []
        else:
            kept[key] = value
    return kept


def _last_part(text: str) -> str:
    if PureWindowsPath(text).drive:
        return PureWindowsPath(text).name
    return PurePosixPath(text).name if text.startswith(("/", "~")) else text


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed; the keys of mappings are not."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_texts(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: _map_texts(item, change) for name, item in fields.items()}
        return dataclasses.replace(value, **{name: item for name, item in changed.items() if item != fields[name]})
    return value
