"""What can be found wrong with a recipe in a second: no import of PyTorch, transformers or datasets."""

from __future__ import annotations

from ..data.check import check_sources
from ..recipe.schema import Recipe
from .output_folder import Resume, check_folder, output_folder
from .teacher_place import local_teacher


def check_early(recipe: Recipe, *, resume: Resume = False, overwrite: bool = False) -> None:
    """Check what needs no model and no tokenizer: the output folder, the text, and where the teacher is.

    Raises:
        InputError: The same that `job.check` would raise seconds later.
    """
    if not (resume or overwrite):  # then checkpoints are read whole, which is done once
        check_folder(output_folder(recipe), resume=False, overwrite=False)
    check_sources(recipe.data)
    local_teacher(recipe.teacher.model)
