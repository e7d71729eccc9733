"""Conditions on the columns of a source's rows: `{int_score: {min: 4}, language: {in: [en, de]}}`."""

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

OPERATORS = ("min", "max", "equals", "in")
_EXAMPLE = "{column: {min: 4}}, with min, max, equals or in"


def check_filter(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The filter itself, if every condition can hold.

    Raises:
        ValueError: It can't; the text says what was expected.
    """
    for column, conditions in value.items():
        if "" in column.split("."):
            raise ValueError(f"expected a column's name before each condition, or dotted names as in `a.b`: {_EXAMPLE}")
        if not conditions:
            raise ValueError(f"expected a condition on `{column}`: {_EXAMPLE}")
        for operator, bound in conditions.items():
            _check_condition(column, operator, bound)
        low, high = conditions.get("min"), conditions.get("max")
        if low is not None and high is not None:
            if kind_of(low) != kind_of(high):
                raise ValueError(f"expected min and max of `{column}` to be both numbers or both texts")
            if low > high:
                raise ValueError(f"expected min of `{column}` to be at most its max, or no row is kept")
    return value


def _check_condition(column: str, operator: str, bound: Any) -> None:
    if operator not in OPERATORS:
        raise ValueError(f"expected one of {', '.join(OPERATORS)} for `{column}`, and there is `{operator}`")
    if operator in ("min", "max"):
        if not _is_bound(bound) or isinstance(bound, bool):
            raise ValueError(f"expected {operator} of `{column}` to be a finite number, or text such as a date")
    elif operator == "equals":
        if not _is_bound(bound):
            raise ValueError(f"expected equals of `{column}` to be a finite number, text, true or false")
    elif not isinstance(bound, list) or not all(map(_is_bound, bound)) or not bound:
        raise ValueError(f"expected in of `{column}` to be a list of numbers, texts, true or false")


def kind_of(value: Any) -> str | None:
    """What a value can be compared with; None for what can't be compared."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Real | Decimal):
        return "a number"
    return "text" if isinstance(value, str) else None


def _is_bound(value: Any) -> bool:
    """Whether a recipe's value can be a bound; not a number counts as none, and neither does infinity."""
    return kind_of(value) is not None and (not isinstance(value, float) or math.isfinite(value))


def passes(value: Any, conditions: Mapping[str, Any]) -> bool:
    """Whether a row's value meets every condition on its column; a value that is not there meets none.

    Raises:
        ValueError: The value is of a kind that a condition can't be compared with, so that it would never be met.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, datetime.date):  # and datetime: tables have them as such, recipes as text
        value = value.isoformat()
    for operator, bound in conditions.items():
        bounds = bound if operator == "in" else [bound]
        if kind_of(value) not in map(kind_of, bounds):
            kinds = " or ".join(sorted({str(kind_of(one)) for one in bounds}))
            raise ValueError(f"the value is {str(value)[:60]!r} ({type(value).__name__}); {operator} compares {kinds}")
        met = {"min": lambda b: value >= b[0], "max": lambda b: value <= b[0]}.get(operator, lambda b: value in b)
        if not met(bounds):
            return False
    return True
