"""Conditions on columns: what they keep, and what they can't be compared with."""

import math

import pytest

from lowrank_clone.data.filters import check_filter, passes


@pytest.mark.parametrize(
    ("conditions", "kept", "dropped"),
    [
        ({"min": 4}, [4, 5, 4.0, 1e300], [3, 3.999, -math.inf, None, math.nan]),
        ({"max": 0.5}, [0.5, -1, 0], [0.51, 1, None]),
        ({"min": 1, "max": 2}, [1, 1.5, 2], [0, 3]),
        ({"min": "2023-01-01"}, ["2023-01-01", "2024-05-06T00:00:00"], ["2022-12-31", "", None]),
        ({"equals": "en"}, ["en"], ["de", "", "EN", None]),
        ({"equals": True}, [True], [False, None]),
        ({"equals": 3}, [3, 3.0], [4]),
        ({"in": ["en", "de"]}, ["en", "de"], ["fr", "e"]),
        ({"in": [1, "one"]}, [1, "one"], [2, "two"]),
        ({"in": [3, 4], "max": 3}, [3], [4, 5]),
    ],
)
def test_what_is_kept(conditions: dict, kept: list, dropped: list) -> None:
    check_filter({"column": conditions})
    assert [passes(value, conditions) for value in kept] == [True] * len(kept)
    assert [passes(value, conditions) for value in dropped] == [False] * len(dropped)


@pytest.mark.parametrize(
    ("conditions", "value", "kinds"),
    [
        ({"min": 4}, "5", "min compares a number"),
        ({"min": 4}, True, "min compares a number"),
        ({"equals": "5"}, 5, "equals compares text"),
        ({"in": [1, "a"]}, True, "in compares a number or text"),
        ({"max": "b"}, ["a"], "max compares text"),
    ],
)
def test_a_value_that_could_never_meet_it_is_an_error(conditions: dict, value: object, kinds: str) -> None:
    with pytest.raises(ValueError, match=f"the value is .*; {kinds}"):
        passes(value, conditions)
