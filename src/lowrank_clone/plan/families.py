"""Which decoder families of the installed `transformers` can be cloned, found by planning each default config."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import InputError
from .architecture import decoder_config
from .classify import make_plan


@dataclass(frozen=True)
class Family:
    """One model type: how many taps its plan has, or why it is refused."""

    model_type: str
    taps: int | None
    reason: str

    @property
    def supported(self) -> bool:
        """Whether a plan classifies every parameter."""
        return self.taps is not None


def survey(model_type: str) -> Family:
    """Plan the default config of one model type at half its width.

    Raises:
        InputError: The installed transformers has no such causal language model.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"`{model_type}` is no causal language model of transformers {transformers.__version__}")
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception as error:  # some types have no usable default config
        return Family(model_type, None, f"its default config can't be made: {' '.join(str(error).split())}")
    try:
        text = decoder_config(config)
        plan = make_plan(text, text.hidden_size // 2)
    except InputError as error:
        return Family(model_type, None, str(error))
    return Family(model_type, len(plan.taps), "" if text is config else f"through its text model `{text.model_type}`")


def survey_all() -> list[Family]:
    """`survey` of every causal language model of the installed transformers, by name."""
    return [survey(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]


def to_markdown(families: list[Family]) -> str:
    """The contents of docs/families.md."""
    supported = [family for family in families if family.supported]
    refused = [family for family in families if not family.supported]
    lines = [
        "# Model families",
        "",
        f"Written by `lrc families --markdown` with transformers {transformers.__version__}: every causal language "
        "model type, planned from its default config at half its width. Nothing here knows any of them by name.",
        "",
        f"## Supported ({len(supported)})",
        "",
        "| type | taps | |",
        "|---|---|---|",
        *(f"| {family.model_type} | {family.taps} | {family.reason} |" for family in supported),
        "",
        f"## Refused ({len(refused)})",
        "",
        "| type | reason |",
        "|---|---|",
        *(f"| {family.model_type} | {family.reason.replace('|', '/')} |" for family in refused),
    ]
    return "\n".join(lines)
