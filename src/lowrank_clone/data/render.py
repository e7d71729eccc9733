"""Chats as text, by the tokenizer's chat template, and where in it the assistant speaks.

A template is a program that comes with a model. It runs in a process of its own (`render_worker.py`), with bounded time
and memory, so that whatever it does ends in one line. The process is kept between chats: a chat costs what its template
takes, and a trip through a pipe.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .tokenizer import chat_template, special_names

LONGEST_CHAT = 16 * 2**20  # characters; a template that makes more of a few messages runs away
SECONDS = 5.0  # for one chat, which takes a millisecond
_WORKER = "lowrank_clone.data.render_worker"
_START_UP = 120.0  # seconds until the process is ready, on a busy machine
_GRACE = 5.0  # seconds more until a process that does not answer is ended
_MEMORY = 512 * 2**20  # bytes
_BATCH = 64  # chats of one message to the process
_LOST = 3  # processes that a template may use up; after that it is not tried again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendered:
    """A chat as text, with the half-open character spans that the assistant says; or why there is none."""

    text: str | None
    spans: tuple[tuple[int, int], ...] = ()
    error: str | None = None


class Renderer:
    """Renders chats by a tokenizer's template. Picklable: each process that uses it starts a process for templates.

    Args:
        spans: Whether to find what the assistant says: by the template's `{% generation %}` where it has them, else by
            rendering turn by turn (`turns.py`).
        seconds: Time that one chat may take.

    Raises:
        InputError: The tokenizer has no template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, spans: bool = False, seconds: float = SECONDS) -> None:
        template = chat_template(tokenizer)
        if template is None:
            raise InputError(
                "chat_column: is set but the tokenizer has no chat template; expected one; use text_column, or give "
                "the tokenizer a template"
            )
        names = special_names(tokenizer)
        self._names = None if names is None else f"(?:{names.pattern})$"
        special = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        self._settings = {"template": template, "special": special, "spans": spans, "seconds": seconds}
        self._settings |= {"memory": _MEMORY, "longest": LONGEST_CHAT}
        self._process: _Process | None = None
        self._lost = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def render(self, chats: Sequence[list[dict[str, Any]]]) -> list[Rendered]:
        """Each chat as text, or the reason why the template refuses it."""
        found: list[Rendered] = []
        while len(found) < len(chats):
            if self._lost >= _LOST:
                ended = Rendered(None, error=f"it has used up {_LOST} processes by time or memory and is given up")
                return found + [ended] * (len(chats) - len(found))
            found += self._some(chats[len(found) : len(found) + _BATCH])
        return found

    def _some(self, chats: Sequence[list[dict[str, Any]]]) -> Iterator[Rendered]:
        """The answers to some chats, up to the first that the process did not survive."""
        if self._process is None or self._process.owner != os.getpid():
            self._process = _Process(self._settings)
        for answer in self._process.ask(chats):
            if answer is None:
                self._process, self._lost = None, self._lost + 1
                yield Rendered(None, error="it takes too long or too much memory")
                return
            if error := answer.get("error"):
                yield Rendered(None, error=error)
            else:
                text = answer["text"]
                yield Rendered(text, tuple(self._span(text, *span) for span in answer["spans"]))

    def _span(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A span without the whitespace behind its end of turn, where that is a special token: nobody says it."""
        said = text[start:end].rstrip()
        if self._names is not None and re.search(self._names, said):
            return start, start + len(said)
        return start, end


class _Process:
    """A process that answers, ended when one answer takes too long."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if sys.platform != "linux":
            logger.warning("this system does not bound the memory of a process, so that of chat templates is not")
        self.owner, self._limit, self._deadline = os.getpid(), settings["seconds"] + _GRACE, float("inf")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            encoding="utf-8",
        )
        weakref.finalize(self, _end, self._process, os.getpid())
        threading.Thread(target=_watch, args=(weakref.ref(self), self._process), daemon=True).start()
        self._send(settings)
        if not self._read(_START_UP):
            raise InputError(
                f"chat templates run in a process of their own, and `{sys.executable} -m {_WORKER}` did not start "
                f"within {_START_UP:.0f} s; expected an installed lowrank-clone; run it to see why"
            )

    def ask(self, chats: Sequence[list[dict[str, Any]]]) -> Iterator[dict[str, Any] | None]:
        """The answer to each chat, in order; None where the process ended over it, and nothing after that."""
        self._send(chats)
        for _ in chats:
            line = self._read(self._limit)
            yield json.loads(line) if line.endswith("\n") else None
            if not line.endswith("\n"):
                return

    def _read(self, seconds: float) -> str:
        """A line, or what there is of it where the process ended."""
        assert self._process.stdout is not None
        self._deadline = time.monotonic() + seconds
        line = self._process.stdout.readline()
        self._deadline = float("inf")
        return line

    def overdue(self) -> bool:
        """Whether an answer is awaited for too long."""
        return time.monotonic() > self._deadline

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value, default=str) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: no answer will come, which says so


def _watch(process: weakref.ref[_Process], running: subprocess.Popen[str]) -> None:
    while running.poll() is None:
        time.sleep(0.2)
        known = process()
        if known is None or known.overdue():
            running.kill()
            return
        del known


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:  # in a forked copy it is none of ours
        process.returncode = 0
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
