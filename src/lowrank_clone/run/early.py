"""What can be found wrong with a recipe in a second: no import of PyTorch, transformers or datasets."""

from __future__ import annotations

from ..data.check import check_sources
from ..recipe.schema import Recipe


def check_early(recipe: Recipe) -> None:
    """Check what needs no model and no tokenizer.

    Raises:
        InputError: The same that `job.check` would raise seconds later.
    """
    check_sources(recipe.data)
