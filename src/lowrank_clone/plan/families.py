"""Which decoder families of the installed `transformers` can be cloned, found by planning each type's layout."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import InputError
from .classify import make_plan
from .decoder import decoder_config
from .layouts import LAYOUTS, layout_config
from .roles import Plan


@dataclass(frozen=True)
class Family:
    """One model type: its plan, or why it is refused. `layout` is the checkpoint whose layout was planned."""

    model_type: str
    layout: str
    plan: Plan | None
    reason: str

    @property
    def supported(self) -> bool:
        """Whether a plan classifies every parameter."""
        return self.plan is not None


def survey(model_type: str) -> Family:
    """Plan the layout of one model type (see `layouts.py`) at half its width.

    Raises:
        InputError: The installed transformers has no such causal language model.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"`{model_type}` is no causal language model of transformers {transformers.__version__}")
    layout = LAYOUTS[model_type].source if model_type in LAYOUTS else "default"
    try:
        config = layout_config(model_type)
    except Exception as error:  # some types have no usable default config
        return Family(model_type, layout, None, f"its default config can't be made: {' '.join(str(error).split())}")
    try:
        text = decoder_config(config)
        plan = make_plan(text, text.hidden_size // 2)
    except InputError as error:
        return Family(model_type, layout, None, str(error))
    through = "" if text is config else f"through its text model `{text.model_type}`"
    return Family(model_type, layout, plan, through)


def survey_all() -> list[Family]:
    """`survey` of every causal language model of the installed transformers, by name."""
    return [survey(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
