"""YAML by the rules of version 1.2: `3e-4` is a number, and only `true` and `false` are booleans, so that
`eval_strategy: no` stays text. Text keys only, and no key twice."""

import json
import re
from typing import Any

import yaml

from ..errors import InputError


def parse_yaml(text: str, name: str) -> Any:
    """Text to plain values.

    Raises:
        InputError: It is no valid YAML, or holds what is no text, number, boolean, null, list or mapping.
    """
    try:
        tree = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{name}{where}: {error.problem or error.context}; expected valid YAML") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{name}: {error.reason} (at character {error.position}); expected valid YAML") from None
    try:
        # Also gives each alias a copy of its own, so that an override changes one place.
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}; expected text, numbers, true, false, null, lists and mappings") from None


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, text keys only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are text, each once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem=f"key {key!s:.40} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key `{key}`", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `Loader` would take for something else."""


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # Digits with a leading zero stay text: no octal numbers, and a commit id is not cut.
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]*\.[0-9]+|[0-9]+\.)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
