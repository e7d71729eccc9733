"""A template that can't be used is refused before anything is tokenised."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizer as tiny

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.tokenizer import check_tokenizer
from lowrank_clone.errors import InputError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def check(folder: Path, chats: list[Any], template: str, on_error: str = "raise", **source: Any) -> None:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"c": chat}) + "\n" for chat in chats), encoding="utf-8")
    config = DataConfig([SourceConfig(str(file), chat_column="c", **source)], on_error=on_error)  # type: ignore[arg-type]
    check_tokenizer(config, tiny.tiny_tokenizer(chat=template), 300)


COUNTS = "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"
TOOLS = (
    "{{ raise_exception('no ' + messages[0]['role']) if messages[0]['role'] == 'tool' }}{{ messages[0]['content'] }}"
)
BAD = [{"role": "tool", "content": "q"}]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_template_that_does_not_tell_the_assistant_apart(tmp_path: Path, on_error: str) -> None:
    check(tmp_path, [CHAT] * 20, COUNTS, on_error)
    with pytest.raises(
        InputError, match=r"data\.sources\.0\.chat_column: .*chats\.jsonl line 1: .*changes what stands"
    ):
        check(tmp_path, [CHAT] * 20, COUNTS, on_error, loss_on="assistant")


def test_a_template_that_runs_away(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the chat template refuses it \(MemoryError\).*all of its first 8 chats"):
        check(tmp_path, [CHAT] * 20, "{{ 'a' * 10**9 }}", "skip")


def test_one_row_that_the_template_refuses(tmp_path: Path) -> None:
    check(tmp_path, [CHAT, BAD, CHAT], TOOLS, "skip")  # counted later
    with pytest.raises(InputError, match=r"line 2: the chat template refuses it \(TemplateError: no tool\)"):
        check(tmp_path, [CHAT, BAD, CHAT], TOOLS)


def test_several_templates_and_none_by_default(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"c": CHAT}) + "\n", encoding="utf-8")
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(InputError, match="the chat templates rag, tool_use, expected one called `default`"):
        check_tokenizer(DataConfig([SourceConfig(str(file), chat_column="c")]), tokenizer, 300)
