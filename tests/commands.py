"""`lrc` as the tests call it, and what it left."""

import hashlib
from pathlib import Path

import pytest

from lowrank_clone.cli.main import main


def lrc(*arguments: object) -> int:
    """The exit code of a command."""
    return main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that must fail."""
    assert lrc(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrc: error: ")]
    assert len(lines) == 1
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
