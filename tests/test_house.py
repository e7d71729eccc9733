"""Who may import whom: the table of docs/architecture.md, held against every import of the package."""

import ast
import re
from pathlib import Path

import pytest

import lowrank_clone

PACKAGE = Path(lowrank_clone.__file__).parent
TABLE = Path(__file__).parents[1] / "docs" / "architecture.md"


def table() -> tuple[set[str], dict[str, set[str]]]:
    """The base, which everybody may import, and what each room, or dotted file of its own, may import beside it."""
    rows = [
        line.strip("|").split("|") for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    named = [
        (re.findall(r"`([\w.]+)`", rooms), allowed) for rooms, _, allowed in (row for row in rows if len(row) == 3)
    ]
    base = set(named[0][0])
    everything = {room for rooms, _ in named for room in rooms}
    found: dict[str, set[str]] = {}
    for rooms, allowed in named:
        listed = set(re.findall(r"`([\w.]+)`", allowed))
        if "everything" in allowed:
            listed = everything - (listed if "but" in allowed else set())
        found |= dict.fromkeys(rooms, listed)
    return base, found


BASE, MAY_IMPORT = table()


def imports(file: Path) -> list[str]:
    """Dotted names inside the package that a file imports, lazily or not."""
    name = file.relative_to(PACKAGE).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name[: len(name) - node.level]
            module = [*base, *(node.module.split(".") if node.module else [])]
            found += [".".join(module)] if node.module else [".".join([*module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowrank_clone"):
            found.append(str(node.module).removeprefix("lowrank_clone").removeprefix("."))
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_table(file: Path) -> None:
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    room = name.split(".")[0]
    if room in ("__init__", "__main__"):
        return
    allowed = BASE | {room} | MAY_IMPORT.get(name, MAY_IMPORT[room])
    for target in imports(file):
        parts = [".".join(target.split(".")[:end]) for end in range(1, target.count(".") + 2)]
        assert allowed & set(parts), f"{name} imports {target}; it may import {', '.join(sorted(allowed))}"


def test_the_table_names_every_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in MAY_IMPORT if "." not in name} == rooms | files


def test_sizes_of_files_and_functions() -> None:
    """A file is read in one sitting: at most 300 lines, and no function over 60."""
    long = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        name = str(file.relative_to(PACKAGE))
        if (lines := text.count("\n")) > 300:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60:
                long.append(f"{name}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert not long, "\n".join(long)
