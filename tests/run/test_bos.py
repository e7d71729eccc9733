"""What is said of a teacher's bos: the two losses, and a word where the blocks are not as the teacher expects."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.objective.bos import BosGap
from lowrank_clone.run import bos as module
from lowrank_clone.run.bos import say_bos_gap


class Rows:
    length = 16

    def __len__(self) -> int:
        return 3

    def select(self, rows: range) -> list[int]:
        assert len(rows) == 3
        return list(rows)


@pytest.mark.parametrize(
    ("begins", "losses", "expected"),
    [
        (True, (2.8, 4.3), "its bos matters"),
        (True, (4.3, 2.8), "adds a bos, which harms it"),
        (False, (2.8, 4.3), "adds no bos, which it needs"),
        (False, (4.3, 2.8), None),
        (True, (2.8, 2.85), None),
        (False, (2.85, 2.8), None),
    ],
)
def test_a_word_where_it_matters(
    begins: bool, losses: Any, expected: str | None, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(module, "bos_gap", lambda *_: BosGap(*losses, 45))
    console = Console(file=io.StringIO(), width=200)
    rows: Any = Rows()
    with caplog.at_level(logging.WARNING, "lowrank_clone"):
        say_bos_gap(tiny_model("llama"), tiny_tokenizer(bos=begins), rows, console)
    assert f"the teacher's loss is {losses[0]:.3f} nats per token with a bos" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [expected in record.getMessage() for record in caplog.records] == ([True] if expected else [])
