"""Chats as templates expect them, from the forms in which datasets have them.

`{role, content}` is OpenAI's form, `{from, value}` ShareGPT's. What comes out has roles that templates know, text as
content, and tool calls whose arguments are objects.
"""

import json
from collections.abc import Mapping
from typing import Any

_EXPECTED = "expected a list of {role, content} messages, or of {from, value} ones"
# What datasets call the roles that templates call otherwise.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # who speaks, in ShareGPT's form, where the assistant calls a tool
_KNOWN = ("system", "developer", "user", "assistant", "tool")


def chat_messages(value: Any, *, filled: bool = False) -> list[dict[str, Any]]:
    """The messages of one chat, without those of their fields that are null.

    Args:
        filled: Whether it comes of a table, which puts nulls into a row for what other rows have: then arguments of
            tool calls lose their nulls too. JSON keeps its own.

    Raises:
        ValueError: It is no chat, or holds something that no template can write as text.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"the chat is {str(value)[:60]!r}; {_EXPECTED}")
    messages = [_message(message, filled) for message in value]
    _check_texts(messages)
    return messages


def _message(given: dict[str, Any], filled: bool) -> dict[str, Any]:
    message = {key: value for key, value in given.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_value(message)
    if isinstance(message.get("role"), str):
        message["role"] = _ROLES.get(message["role"], message["role"])
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"])
    if isinstance(call := message.pop("function_call", None), dict):
        message.setdefault("tool_calls", [call])
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = [_tool_call(call, filled) for call in _list(calls, "tool_calls")]
        message.setdefault("content", "")
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise ValueError(f"a message has {sorted(given)}, and role and content are not both strings; {_EXPECTED}")
    return message


def _from_value(message: dict[str, Any]) -> dict[str, Any]:
    """A message of ShareGPT's form in OpenAI's."""
    speaker, said = message["from"], message.get("value")
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    if speaker in _CALLS:
        calls = _parsed(said, f"what {speaker} says")
        return {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls], **rest}
    if not isinstance(speaker, str) or _ROLES.get(speaker, speaker) not in _KNOWN:
        known = ", ".join((*_KNOWN, *_ROLES, *_CALLS))
        raise ValueError(f"a message is from {str(speaker)[:60]!r}; expected one of {known}")
    return {"role": speaker, "content": said, **rest}


def _joined(parts: list[Any]) -> str:
    """The text of content that is a list of parts, each on lines of its own."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise ValueError(f"a message's content has a part of type {str(kind)[:60]!r}; expected text alone")
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: Any, filled: bool) -> dict[str, Any]:
    """`{type: function, function: {name, arguments}}` with the arguments as an object."""
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call is {str(call)[:60]!r}; expected {{name, arguments}}")
    outer = {key: value for key, value in call.items() if value is not None}
    function = outer.get("function")
    if isinstance(function, Mapping):
        inner = {key: value for key, value in function.items() if value is not None}
    else:
        inner = {key: outer.pop(key) for key in ("name", "arguments") if key in outer}
    if not isinstance(inner.get("name"), str):
        raise ValueError(f"a tool call has {sorted(call)} and no name; expected {{name, arguments}}")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"the call of {inner['name'][:60]}") if arguments.strip() else {}
    elif filled:
        arguments = _without_nulls(arguments)
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"the arguments of a call of {inner['name'][:60]} are {str(arguments)[:60]!r}; "
            "expected an object, or JSON of one"
        )
    return {"type": "function", **outer, "function": {**inner, "arguments": dict(arguments)}}


def _without_nulls(value: Any) -> Any:
    """Arguments without null fields."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _parsed(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no JSON ({str(error)[:100]}): {str(text)[:60]!r}; expected an object") from None


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {str(value)[:60]!r}; expected a list")
    return value


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key)
            _check_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner)


def check_text(text: str) -> None:
    """Refuse text that no tokenizer can take.

    Raises:
        ValueError: It holds a NUL character, or half a surrogate pair, as JSON may.
    """
    if "\0" in text:
        raise ValueError(f"a NUL character stands at {text.index(chr(0)):,}; expected text, in UTF-8")
    if not text.isascii():
        text.encode()
