"""Chats in the forms in which datasets have them, as templates expect them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_clone.data.chats import chat_messages
from lowrank_clone.data.config import SourceConfig
from lowrank_clone.data.readers.parts import split_source
from lowrank_clone.data.readers.reading import read_documents

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def call(arguments: object) -> dict:
    return {"type": "function", "function": {"name": "find", "arguments": arguments}}


CALLS = {"role": "assistant", "content": "", "tool_calls": [call({"city": "Bonn", "days": [1, 2]})]}
TEXT = json.dumps({"city": "Bonn", "days": [1, 2]})

SAME = [
    ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], [USER, ANSWER]),
    ([{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], [USER, ANSWER]),
    ([{"from": "system", "value": "s"}], [{"role": "system", "content": "s"}]),
    ([{"from": "chatgpt", "value": "a"}], [ANSWER]),
    ([{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}], [USER, ANSWER]),
    ([{"from": "gpt", "value": "a", "weight": 1, "name": None}], [{**ANSWER, "weight": 1}]),
    *(([{"from": name, "value": "found"}], [{"role": "tool", "content": "found"}])
      for name in ("tool", "function", "observation", "function_response", "tool_response")),
    ([{"role": "function", "name": "find", "content": "x"}], [{"role": "tool", "name": "find", "content": "x"}]),
    ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], [USER]),
    ([{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
     [{"role": "user", "content": "one\ntwo"}]),
    ([{"role": "user", "content": ["q"]}], [USER]),
    # Tool calls: arguments as an object, as JSON, without {type, function} around them, and as one call.
    ([{**CALLS, "content": None}], [CALLS]),
    ([{"role": "assistant", "tool_calls": [call(TEXT)]}], [CALLS]),
    ([{"role": "assistant", "content": "", "tool_calls": [{"name": "find", "arguments": TEXT}]}], [CALLS]),
    ([{"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": TEXT}}], [CALLS]),
    ([{"from": "function_call", "value": json.dumps({"name": "find", "arguments": json.loads(TEXT)})}], [CALLS]),
    ([{"from": "tool_call", "value": json.dumps([{"name": "find", "arguments": TEXT}])}], [CALLS]),
    ([{"role": "assistant", "tool_calls": [{"id": "1", **call("")}]}],
     [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", **call({})}]}]),
    ([{**ANSWER, "tool_calls": []}], [ANSWER]),
    ([{**ANSWER, "tool_calls": None}], [ANSWER]),
    # A null in JSON is one.
    ([{"role": "assistant", "tool_calls": [call('{"a": null}')]}],
     [{"role": "assistant", "content": "", "tool_calls": [call({"a": None})]}]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), SAME)
def test_every_form_becomes_one(given: list, expected: list) -> None:
    assert chat_messages(given) == expected
    assert chat_messages(expected) == expected  # and stays it


BAD = [
    ("hello", "the chat is 'hello'; expected a list of {role, content} messages, or of {from, value} ones"),
    ([], "the chat is '[]'"),
    ([["user", "q"]], "expected a list of {role, content}"),
    ([{"role": "user"}], "a message has ['role'], and role and content are not both strings"),
    ([{"role": 3, "content": "q"}], "role and content are not both strings"),
    ([{"from": "human"}], "a message has ['from'], and role and content are not both strings"),
    ([{"from": "nobody", "value": "q"}], "a message is from 'nobody'; expected one of system, developer, user"),
    ([{"from": None, "value": "q"}], "role and content are not both strings"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part of type 'image_url'"),
    ([{"role": "user", "content": [{"type": "text"}]}], "a part of type 'text'; expected text alone"),
    ([{"role": "assistant", "tool_calls": [call("no json")]}], "the call of find is no JSON ("),
    ([{"role": "assistant", "tool_calls": [call("[1]")]}], "the arguments of a call of find are '[1]'"),
    ([{"role": "assistant", "tool_calls": [{"arguments": {}}]}], "a tool call has ['arguments'] and no name"),
    ([{"role": "assistant", "tool_calls": "find"}], "tool_calls is 'find'; expected a list"),
    ([{"role": "assistant", "tool_calls": ["find"]}], "a tool call is 'find'; expected {name, arguments}"),
    ([{"from": "function_call", "value": "find it"}], "what function_call says is no JSON"),
    ([{"role": "user", "content": "a\0b"}], "a NUL character stands at 1"),
    ([{"role": "user", "content": "\ud800"}], "surrogates not allowed"),
    ([{"role": "assistant", "tool_calls": [call({"a": ["\ud800"]})]}], "surrogates not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), BAD)
def test_what_is_no_chat(given: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        chat_messages(given)
    assert message in str(caught.value)


def test_a_table_of_calls_gives_each_row_its_own_arguments(folder: Path) -> None:
    """Arrow puts the fields of all rows into every row, and nulls where a row has none."""
    chats = [
        [USER, {"role": "assistant", "content": None, "tool_calls": [call({"city": "Bonn"})]}],
        [USER, {"role": "assistant", "content": "b", "tool_calls": [call({"days": 3})]}],
        [USER, ANSWER],
    ]
    rows = [{"talk": {"messages": chat}, "score": i} for i, chat in enumerate(chats)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "c.json").write_text(json.dumps(rows, indent=1))
    for name in ("a.parquet", "b.jsonl", "c.json"):
        source = SourceConfig(path=str(folder / name), chat_column="talk.messages")
        (part,) = split_source(source)
        documents = list(read_documents(part, source, strict=True))
        assert [document.messages for document in documents] == [chat_messages(chat) for chat in chats]
        assert [document.text for document in documents] == [None] * 3
