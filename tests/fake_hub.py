"""A Hub without a network: datasets are folders of files, streamed by the real `datasets`."""

import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest


class FakeHub:
    """`owner/name` is the folder `root/owner/name`; `loaded` lists what was asked for."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.revision, self.licence = root, "a" * 40, "apache-2.0"
        self.loaded: list[tuple[str, str | None, str, str | None]] = []
        self._load = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", self.load_dataset)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, path, revision: self.info(path, revision))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Opening it again after a failure is asked of the network, and waited for.
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def folder(self, path: str) -> Path:
        """Where the files of a dataset lie."""
        place = self.root / path
        place.mkdir(parents=True, exist_ok=True)
        return place

    def info(self, path: str, revision: str | None) -> object:
        if not (self.root / path).exists():
            raise ConnectionError("no\nnetwork")
        card = SimpleNamespace(get=lambda _: self.licence)
        return SimpleNamespace(sha=revision or self.revision, card_data=card)

    def load_dataset(
        self, path: str, name: str | None, *, split: str, revision: str | None, streaming: bool
    ) -> datasets.IterableDataset:
        assert streaming  # nothing is ever downloaded whole
        self.loaded.append((path, name, split, revision))
        files = sorted(map(str, self.folder(path).iterdir()))
        kind = "parquet" if files[0].endswith(".parquet") else "json"
        return self._load(kind, data_files={split: files}, split=split, streaming=True)
