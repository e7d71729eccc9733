"""YAML by the rules of version 1.2: `3e-4` is a number, and only `true` and `false` are booleans, so that
`eval_strategy: no` stays text. Text keys only, and no key twice."""

import json
import re
from typing import Any

import yaml

from ..errors import InputError, one_line

# More than any recipe holds, and what the aliases of a small file could otherwise be unfolded to without end.
_MOST_NODES = 100_000


def parse_yaml(text: str, name: str) -> Any:
    """The document as plain values, every alias with a copy of its own, so that an override changes one place.

    Raises:
        InputError: It is no YAML, or holds what no recipe can: keys that are no text or stand twice, dates, sets,
            a node inside itself, more than 100,000 values, or thousands of levels.
    """
    shown = one_line(name, 200)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return json.loads(json.dumps(loader.construct_document(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{shown}{where}: {error.problem or error.context}; expected valid YAML") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{shown}: {error.reason} (at character {error.position}); expected valid YAML") from None
    except RecursionError:
        raise InputError(f"{shown}: nested too deeply; expected a recipe's few levels") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{shown}: {error}; expected text, numbers, true, false, null, lists and mappings") from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node has once its aliases are unfolded."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
        return counts[id(node)]
    counts[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    total = 1 + sum(_count(part, counts) for part in inner)
    if total > _MOST_NODES:
        raise yaml.MarkedYAMLError(
            problem=f"more than {_MOST_NODES:,} values, aliases unfolded", problem_mark=node.start_mark
        )
    counts[id(node)] = total
    return total


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, text keys only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            MarkedYAMLError: A key is no text, or stands twice.
        """
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem=f"key {key!s:.40} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key `{key:.40}`", problem_mark=key_node.start_mark)
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
