"""Long texts in segments for a tokenizer, which needs some hundred bytes a character while it works on one text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

SEGMENT = 2**20  # characters of one, about
_NEAR = 200  # characters on both sides of a cut that are looked at
_TRIES = 16  # places that are tried for each cut

Encode = Callable[[list[str]], Iterable[list[int]]]


def segments(text: str, encode: Encode) -> list[str]:
    """The text in pieces whose ids, joined, are those of the whole text.

    A text is cut at the end of a line or before a space where that changes nothing: where the text around the cut gives
    the ids of its two sides. A tokenizer without such places (it puts a space before every text) gets the text whole.

    Args:
        encode: Ids of each of some texts, without bos and eos.
    """
    cuts, at = [0], SEGMENT
    while at < len(text):
        for place in _places(text, at):
            around = text[place - _NEAR : place + _NEAR]
            whole, left, right = encode([around, around[:_NEAR], around[_NEAR:]])
            if whole == left + right:
                cuts.append(place)
                at = place
                break
        at += SEGMENT
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _places(text: str, start: int) -> Iterator[int]:
    """Places after `start` at which a text may be cut: after line ends first, then before spaces."""
    for pattern in (r"(?<=\S\n)(?=\S)", r"(?<=\S)(?= \S)"):
        found = re.compile(pattern).finditer(text, start, min(start + SEGMENT, len(text) - _NEAR))
        for _, match in zip(range(_TRIES), found, strict=False):
            yield match.start()
