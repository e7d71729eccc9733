"""The process that runs chat templates, which are programs of strangers: `python -m ...data.render_worker`.

Reads one line of JSON with the settings, then one line for each batch: a list of chats. Writes an empty line when it is
ready, then one line of JSON for each chat: `{"text": ..., "spans": ...}` or `{"error": ...}`. A template runs in
jinja's sandbox, without a way to files or imports; here its memory is bounded, and its time as far as it can be
interrupted.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from .turns import Messages, assistant_spans

# Templates may write today's date (`strftime_now`); the same text must come out every day.
_DATE = {"%d": "26", "%-d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%m": "07", "%A": "Friday"}
_DATE |= {"%H": "12", "%M": "00", "%S": "00", "%a": "Fri", "%F": "2024-07-26"}
_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _DATE.items())
    + " }}{% endmacro +%}"
)
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Templates:
    """Renders chats by one template.

    Args:
        template: Its text. special: The special tokens that it may write, by name.
        spans: Whether to find what the assistant says. longest: Characters of a chat at most.
    """

    def __init__(self, template: str, special: dict[str, str], spans: bool, longest: int) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render_jinja: Callable[..., Any] = render_jinja_template
        self._template = _NOW + template if "strftime_now" in template else template
        self._special, self._spans, self._longest = special, spans, longest

    def answer(self, messages: Messages) -> dict[str, Any]:
        """What is written for a chat.

        Raises:
            Exception: Anything that a template fails with.
        """
        random.seed(0)  # a template may draw numbers
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        marks = self._spans and GENERATION.search(self._template) is not None
        text, spans = self._render(chat, marks=marks)
        if not text.strip():
            raise ValueError("it makes no text of it")
        if self._spans and marks:
            if not spans and any(message["role"] == "assistant" for message in chat):
                raise ValueError("its generation markers mark nothing of what the assistant says")
        elif self._spans:
            spans = assistant_spans(lambda part, prompt: self._render(part, prompt)[0], chat, text)
        return {"text": text, "spans": sorted(spans)}

    def _render(self, chat: Messages, prompt: bool = False, marks: bool = False) -> tuple[str, list[tuple[int, int]]]:
        texts, spans = self._render_jinja(
            [chat],
            chat_template=self._template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **self._special,
        )
        if len(texts[0]) > self._longest:
            raise ValueError(f"it makes {len(texts[0]):,} characters of it")
        return texts[0], [tuple(span) for span in spans[0]] if marks else []


def main() -> None:
    """Answer until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else may write among the answers
    settings = json.loads(sys.stdin.readline())
    templates = Templates(settings["template"], settings["special"], settings["spans"], settings["longest"])
    _bound_memory(settings["memory"])
    alarm = getattr(signal, "setitimer", None)  # not on Windows, where who waits ends this process instead
    if alarm:
        signal.signal(signal.SIGALRM, _too_long)
    replies.write("\n")  # ready
    replies.flush()
    for line in sys.stdin:
        for chat in json.loads(line):
            try:
                if alarm:
                    alarm(signal.ITIMER_REAL, settings["seconds"])
                try:
                    answer = json.dumps(templates.answer(chat))
                finally:
                    if alarm:
                        alarm(signal.ITIMER_REAL, 0)
            except Exception as error:
                what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
                answer = json.dumps({"error": what.removeprefix("ValueError: ")})
            replies.write(answer + "\n")
            replies.flush()


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError("it takes too long")


def _bound_memory(more: int) -> None:
    """Let this process take so many bytes more than it has, where the system can bound that (Linux)."""
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


if __name__ == "__main__":
    main()
