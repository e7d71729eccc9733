"""Where in a rendered chat the assistant speaks, found by rendering it turn by turn.

A turn of the assistant goes from the end of the header that invites it (what `add_generation_prompt` adds) to where the
chat up to this turn ends. Where a template renders a turn in another way once others follow (it drops reasoning), the
beginning of a chat is not what the whole chat begins with: then the turn's content is replaced by a mark, and what
stands around the mark, in the whole chat and in the chat that ends with this turn, tells where the turn ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]
_MARKS = ("xq7Lk2vA", "Zr9Tn4wB")  # that begin and end with different letters


def assistant_spans(render: Render, messages: Messages, whole: str) -> list[tuple[int, int]]:
    """Half-open character spans of `whole` that the assistant says, its end of turn included.

    Args:
        render: The chat as text; with True, also the header of the assistant's next turn.
        messages: The chat. whole: The chat as text.

    Raises:
        ValueError: A turn can't be told from the rest.
    """
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start, end = _span(render, messages, i, whole)
            if start > end or (spans and start < spans[-1][1]):
                raise ValueError(f"turn {i + 1} of the assistant can't be told from the one before it")
            spans.append((start, end))
    return spans


def _span(render: Render, messages: Messages, turn: int, whole: str) -> tuple[int, int]:
    before = render(messages[:turn], False)
    prompt = render(messages[:turn], True)
    if not prompt.startswith(before):
        raise ValueError("its generation prompt does not follow the chat")
    upto = render(messages[: turn + 1], False)
    if len(prompt) > len(before) and upto.startswith(prompt) and whole.startswith(upto):
        return len(prompt), len(upto)
    header = _header(render, messages[:turn], before, prompt)
    if upto.startswith(before + header) and whole.startswith(upto):
        return len(before + header), len(upto)
    return _marked_span(render, messages, turn, whole, header)


def _header(render: Render, before: Messages, text: str, prompt: str) -> str:
    """What stands between a chat and what the assistant then says."""
    shown = render([*before, {"role": "assistant", "content": _MARKS[0]}], False)
    if not shown.startswith(text) or shown.count(_MARKS[0]) != 1:
        raise ValueError("a turn of the assistant changes what stands before it")
    found, asked = shown[len(text) : shown.index(_MARKS[0])], prompt[len(text) :]
    if asked and found.startswith(asked):
        return asked
    if asked.startswith(found) and (found or not asked):
        return found  # the prompt also begins the reasoning, which later turns do not have
    if not asked:
        return found
    raise ValueError("its generation prompt is not what stands before a turn of the assistant")


def _marked_span(render: Render, messages: Messages, turn: int, whole: str, header: str) -> tuple[int, int]:
    def marked(mark: str) -> Messages:
        return [*messages[:turn], {**messages[turn], "content": mark}, *messages[turn + 1 :]]

    if any(mark in whole for mark in _MARKS) or (header and header in json.dumps(messages[turn], ensure_ascii=False)):
        raise ValueError("a message looks like what the template writes")
    first, last = _around(render(marked(_MARKS[0]), False), _MARKS[0])
    if _around(render(marked(_MARKS[1]), False), _MARKS[1]) != (first, last):
        raise ValueError("what stands around a turn of the assistant depends on what it says")
    _, end_of_turn = _around(render(marked(_MARKS[0])[: turn + 1], False), _MARKS[0])
    if not last.startswith(end_of_turn):
        raise ValueError("how a turn of the assistant ends depends on what follows")
    rest = last[len(end_of_turn) :]
    start = first.rfind(header) + len(header)
    if header not in first or not whole.startswith(first[:start]) or not whole.endswith(rest):
        raise ValueError("what stands around a turn of the assistant depends on what it says")
    return start, len(whole) - len(rest)


def _around(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError("it does not write what the assistant says exactly once")
    before, after = text.split(mark)
    return before, after
