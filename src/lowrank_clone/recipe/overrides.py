"""Overrides on the command line: `section.key=value` laid into a recipe's tree."""

from typing import Any

from ..errors import InputError, one_line
from .messages import show
from .yaml12 import parse_yaml

# Lists whose entries may be text that is short for a mapping with one key.
_SHORT_FORMS: dict[tuple[str, ...], str] = {("data", "sources"): "path", ("data", "validation"): "path"}


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one field; mappings on the way to it are made, entries of lists are counted from 0.

    Raises:
        InputError: It is not of the form `section.key=value`, the value is no YAML, or the place does not exist.
    """
    shown = f"override `{one_line(override, 200)}`"
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"{shown}: expected `section.key=value` without spaces, as in `training.learning_rate=3e-4`")
    value = parse_yaml(text, shown)
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if tuple(parts[:depth]) in _SHORT_FORMS:
            node = _in_full(tree, parts[:depth], node, None if last else part)
        if isinstance(node, list) and part.isascii() and part.isdigit() and int(part) < len(node):
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            holder = ".".join(parts[:depth])
            raise InputError(f"{shown}: `{holder}` is {show(node)}, which has no `{part}`")
        if last:
            node[index] = value
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def _in_full(tree: dict[str, Any], parts: list[str], node: Any, entry: str | None) -> Any:
    """A list written in short (`sources: text.txt`) as the list of mappings that it stands for."""
    name = _SHORT_FORMS[tuple(parts)]
    if isinstance(node, str | dict):
        node = [node]
        tree[parts[0]][parts[1]] = node
    if isinstance(node, list) and entry is not None and entry.isascii() and entry.isdigit() and int(entry) < len(node):
        i = int(entry)
        node[i] = {name: node[i]} if isinstance(node[i], str) else node[i]
    return node
