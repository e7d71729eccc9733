"""What a recipe's shards are made of."""

from __future__ import annotations

from ..data.check import check_length, keyed_sources
from ..data.make_shards import make_jobs
from ..data.mix import needed_tokens
from ..data.sharding.job import SourceJob
from ..data.tokenizer import check_tokenizer
from ..plan.decoder import decoder_config
from ..recipe.schema import Recipe
from .forecast import run_tokens
from .job import make_arguments, max_length
from .teachers import load_config, load_tokenizer


def shard_jobs(recipe: Recipe) -> list[SourceJob]:
    """One job for each source of a recipe; of the teacher only config and tokenizer are read.

    Args:
        recipe: Its sources are checked already (`check_sources`).

    Raises:
        InputError: The sources, the tokenizer or the shards that are there do not go together.
    """
    config = decoder_config(load_config(recipe.teacher))
    check_length(recipe.data, max_length(config))
    tokenizer = load_tokenizer(recipe.teacher)
    check_tokenizer(recipe.data, tokenizer, config.vocab_size)
    needed = needed_tokens(recipe.data, run_tokens(recipe, make_arguments(recipe)))
    return make_jobs(keyed_sources(recipe.data), recipe.data, tokenizer, config.vocab_size, needed)
