"""Chats as text, by the tokenizer's chat template, and where in it the assistant speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .read import error_reason

LONGEST_CHAT = 16 * 2**20  # characters; a template that makes more of a few messages runs away


@dataclass(frozen=True)
class Rendered:
    """A chat as text, with the half-open character spans that the assistant says; or why there is none."""

    text: str | None
    spans: tuple[tuple[int, int], ...] = ()
    error: str | None = None


class Renderer:
    """Renders chats by a tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def render(self, chats: Sequence[list[dict[str, Any]]]) -> list[Rendered]:
        """Each chat as text, or the reason why the template refuses it."""
        return [self._one(chat) for chat in chats]

    def _one(self, messages: list[dict[str, Any]]) -> Rendered:
        try:
            text = str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template is a program, and may fail with anything
            return Rendered(None, error=error_reason(error))
        if not text.strip():
            return Rendered(None, error="it makes no text of it")
        if len(text) > LONGEST_CHAT:
            return Rendered(None, error=f"it makes {len(text):,} characters of it")
        return Rendered(text)
