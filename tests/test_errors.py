"""The words of messages."""

import pytest

from lowrank_clone.errors import count_of


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (12345, "12,345 shards")]
)
def test_one_is_told_from_many(number: int, said: str) -> None:
    assert count_of(number, "shard") == said
