"""Fields of a source that exclude or need one another; what stands for what."""

import pytest

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.errors import InputError
from lowrank_clone.recipe.load import parse_recipe


def recipe(**source: object) -> dict:
    return {
        "teacher": {"model": "some/model"},
        "student": {"hidden_size": 8},
        "method": {},
        "data": {"sources": ["a.txt", {"path": "b.txt", **source}]},
        "training": {"output_dir": "out"},
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"weight": 2.0, "tokens": 5000}, "data.sources.1.weight: got 2 beside tokens: 5,000, expected only one"),
        ({"loss_on": "assistant"}, "data.sources.1.loss_on: got assistant without a chat_column"),
        ({"text_column": "a..b"}, "data.sources.1.text_column: got 'a..b', expected a column's name"),
        ({"filter": {"score": {"least": 4}}}, "expected one of min, max, equals, in for `score`, and there is `least`"),
        ({"filter": {"score": {}}}, "expected a condition on `score`"),
        ({"filter": {"score": {"min": 5, "max": 4}}}, "expected min of `score` to be at most its max"),
    ],
)
def test_fields_that_contradict_each_other(source: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(recipe(**source))
    assert message in str(caught.value) and str(caught.value).startswith("data.sources.1.")


def test_true_and_false_stand_for_parse_and_text() -> None:
    for given, meant in ((True, "parse"), (False, "text"), ("parse", "parse"), ("text", "text")):
        assert SourceConfig(path="a", special_tokens=given).special_tokens == meant
        assert parse_recipe(recipe(special_tokens=given)).data.sources[1].special_tokens == meant


def test_tokens_may_be_written_as_people_do() -> None:
    source = parse_recipe(recipe(tokens=10e9)).data.sources[1]
    assert source.tokens == 10_000_000_000 and isinstance(source.tokens, int)
    assert DataConfig(sources=[{"path": "a", "tokens": 3, "weight": 1}]).sources[0].tokens == 3
