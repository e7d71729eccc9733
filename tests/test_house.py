"""Who may import whom: the table of docs/architecture.md, held against every import of the package."""

import ast
from pathlib import Path

import pytest

import lowrank_clone

PACKAGE = Path(lowrank_clone.__file__).parent
BASE = {"errors", "hooks", "precision"}
# Room, or file of its own, and what it may import beside the base. A dotted name is one file of a room.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "hooks": set(),
    "precision": set(),
    "plan": set(),
    "data": set(),
    "report": set(),
    "factors": {"plan"},
    "objective": {"plan"},
    "execution": {"plan", "objective"},
    "starts": {"plan", "factors", "objective.head", "objective.lm_kl", "objective.evaluate"},
    "starts.random": {"plan"},
    "cost": {"plan", "factors", "objective"},
    "inspection": {"plan", "factors", "objective", "report"},
    "model": {"plan", "factors", "objective", "execution", "starts.random"},
    "training": {"plan", "factors", "objective", "execution", "model"},
    "training.arguments": set(),
    "recipe": {"plan", "data.config", "training.arguments", "objective.objective"},
    "recipe.method": {"plan", "factors.parameterize", "training.optim", "objective.objective"},
    "recipe.schedule": {"plan", "factors.parameterize", "training.optim", "objective.objective"},
    "run": {"plan", "factors", "objective", "execution", "starts", "cost", "inspection", "report", "model", "training"}
    | {"data", "recipe"},
    "cli": {"plan", "factors", "objective", "execution", "starts", "cost", "inspection", "report", "model", "training"}
    | {"data", "recipe", "run"},
}


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
    if room == "__init__":
        return
    allowed = BASE | {room} | MAY_IMPORT.get(name, MAY_IMPORT[room])
    for target in imports(file):
        parts = [".".join(target.split(".")[:end]) for end in range(1, target.count(".") + 2)]
        assert allowed & set(parts), f"{name} imports {target}; it may import {', '.join(sorted(allowed))}"


def test_sizes_of_files_and_functions() -> None:
    """A file is read in one sitting: at most 300 lines, and no function over 60."""
    long = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        name = str(file.relative_to(PACKAGE))
        # Two files are still to be cut.
        if (lines := text.count("\n")) > 300 and name not in ("cost.py", "starts/calibrated.py"):
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60:
                long.append(f"{name}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert not long, "\n".join(long)
