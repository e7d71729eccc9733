"""How a teacher is asked to generate, made fit to be saved with the student before a run begins, not at its end."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import InputError

# What sampling alone reads. Many published models set these without `do_sample`, which transformers refuses to save.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_generation(folder: Path) -> None:
    """Check the generation_config.json of a teacher's folder, if there is one.

    Raises:
        InputError: It is damaged, or can't be saved again.
    """
    if (folder / GENERATION_CONFIG_NAME).is_file():
        try:
            config = GenerationConfig.from_pretrained(folder)
        except Exception as error:  # damaged JSON, and values of any type
            raise _unusable(error) from error
        make_saveable(config)


def make_saveable(config: GenerationConfig) -> None:
    """Drop settings of sampling from a config that does not sample: nothing reads them, and they can't be saved.

    Raises:
        InputError: That is not what is wrong with it.
    """
    try:
        config.validate(strict=True)
        return
    except (ValueError, TypeError) as error:
        if config.do_sample:
            raise _unusable(error) from error
    for name in _SAMPLING:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"teacher.model: its {GENERATION_CONFIG_NAME} can't be saved with a student ({reason}); mend or remove it"
    )
