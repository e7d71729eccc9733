"""What a recipe's shards are made of."""

from __future__ import annotations

from ..data.check import check_length, check_sources, keyed_sources
from ..data.make_shards import make_jobs
from ..data.mix import needed_tokens
from ..data.sharding.job import SourceJob
from ..data.tokenizer import check_tokenizer
from ..plan.decoder import decoder_config
from ..recipe.schema import Recipe
from .job import make_arguments, max_length
from .teachers import load_config, load_tokenizer


def shard_jobs(recipe: Recipe) -> list[SourceJob]:
    """One job for each source of a recipe; of the teacher only config and tokenizer are read.

    Raises:
        InputError: The sources, the tokenizer or the shards that are there do not go together.
    """
    check_sources(recipe.data)
    config = decoder_config(load_config(recipe.teacher))
    check_length(recipe.data, max_length(config))
    tokenizer = load_tokenizer(recipe.teacher)
    check_tokenizer(recipe.data, tokenizer, config.vocab_size)
    needed = needed_tokens(recipe.data, recipe_tokens(recipe))
    return make_jobs(keyed_sources(recipe.data), recipe.data, tokenizer, config.vocab_size, needed)


def recipe_tokens(recipe: Recipe) -> int | None:
    """Tokens that a run reads whose length is counted in steps: no more of a Hub dataset is downloaded."""
    arguments = make_arguments(recipe)
    steps = arguments.max_steps
    blocks = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return steps * blocks * recipe.data.sequence_length if steps > 0 else None
