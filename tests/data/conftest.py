"""A cache of its own for every test, and a folder for sources beside it."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For the sources, beside the cache."""
    path = tmp_path / "corpus"
    path.mkdir()
    return path
