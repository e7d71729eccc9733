"""docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, test)
