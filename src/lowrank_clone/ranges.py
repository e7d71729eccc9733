"""What values a number or a choice of the user's may have, checked and said in one way."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real

from .errors import InputError


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included unless `above` says that `low` itself is not.

    A callable that returns the value it is given, so that it can stand as a validator in an annotation.

    Raises:
        ValueError: On a call with a number that is outside or not finite; the text says what was expected.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    also: tuple[float, ...] = ()
    """Single values beside the range that have a meaning of their own, such as -1 for no limit."""
    share: float | None = None
    """For a number of steps: numbers above 0 and below this are a share of the run instead."""

    def __call__(self, value: float) -> float:
        """The value itself, if the range holds it."""
        if not self.holds(value):
            raise ValueError(f"expected {self}")
        return value

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and one of those described."""
        if value in self.also:
            return True
        if not is_finite(value):
            return False
        if self.share is not None and 0 < value < self.share:
            return True
        if self.whole and value != int(value):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low, high = shown(self.low), shown(self.high)
        text = f"{kind} above {low} and up to {high}" if self.above else f"{kind} from {low} to {high}"
        if self.share is not None:
            text += f", or a share of the run above 0 and below {shown(self.share)}"
        return " or ".join([text, *map(shown, self.also)])


def check_number(name: str, value: object, allowed: Range) -> None:
    """Refuse what is no number, or one outside a range; true and false are no numbers.

    Raises:
        InputError: `value` is not `allowed`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name}: got {value!r}, expected {allowed}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not allowed.holds(number):
        raise InputError(f"{name}: got {number:g}, expected {allowed}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse what is none of a few values.

    Raises:
        InputError: `value` is none of `choices`, or of another type.
    """
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise InputError(f"{name}: got {value!r}, expected one of {', '.join(map(str, choices))}")


def is_finite(value: float) -> bool:
    """Whether a number is one that can be calculated with; integers of hundreds of digits are none."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(number: float) -> str:
    """A bound as people write it: 10,000, 0.01, 1e-12."""
    if number == int(number) and abs(number) < 1e12:
        return f"{int(number):,}"
    return f"{number:g}"
