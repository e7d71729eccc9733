"""What is minimised: the weights and the variants of the loss, said once for the library and for recipes.

    L = lm_weight * LM + kl_weight * T^2 * mean_token KL(p_T || p_S at temperature T) + clone_weight * sum_taps MSE

(LRC, arXiv 2505.12781, section 3.2.) Every term is a mean over counted tokens (`tokens.py`); `lm_kl.py` computes the
first two, `tap_mse.py` and `comparison.py` the third.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from ..errors import InputError
from ..ranges import Range, check_choice, check_number

Normalization = Literal["none", "target"]
MaskScope = Literal["all", "lm"]
TapWidth = Literal["student", "teacher"]

# Below, softmax(logits / T) is an argmax in float32; above, its rows span less than float32 can tell apart.
TEMPERATURES = Range(1e-2, 1e4)
# A weight beyond this leaves nothing of the other terms in float32.
WEIGHTS = Range(0.0, 1e6)


@dataclass(frozen=True)
class Objective:
    """The loss of a clone. A term of weight 0 is not computed.

    Raises:
        InputError: A number is out of its range, or a value is none of those that there are.
    """

    temperature: float = 40.0
    """Temperature T at which the KL compares teacher and student."""
    lm_weight: float = 1.0
    """Weight of the next-token loss on the data."""
    kl_weight: float = 1.0
    """Weight of T² times the KL, which is a mean over tokens."""
    clone_weight: float = 0.2
    """Weight α of the activation losses, which are summed over layers and taps."""
    clone_normalization: Normalization = "none"
    """none is the plain MSE of the paper; target divides each tap's MSE by the mean square of its target, a running
    mean over optimiser steps, so that no tap outweighs the others by the size of its activations."""
    attn_out_tap: TapWidth = "student"
    """Width at which attention outputs are compared: student is the paper, teacher the published code."""
    target_gradient: bool = True
    """Whether the factor of a write learns from the target of its tap too (the paper) or not."""

    mask_scope: MaskScope = "all"
    """What labels of -100 leave out: every term of the loss (all), or the next-token loss alone (lm), so that the
    student still imitates its teacher on them."""

    _place: ClassVar[str] = "objective"

    def __post_init__(self) -> None:
        for name, allowed in {
            "temperature": TEMPERATURES,
            **dict.fromkeys(("lm_weight", "kl_weight", "clone_weight"), WEIGHTS),
        }.items():
            for value in self._numbers(getattr(self, name)):
                check_number(f"{self._place}.{name}", value, allowed)
        for name, choices in {
            "clone_normalization": get_args(Normalization),
            "attn_out_tap": get_args(TapWidth),
            "target_gradient": (True, False),
            "mask_scope": get_args(MaskScope),
        }.items():
            check_choice(f"{self._place}.{name}", getattr(self, name), choices)

    def _numbers(self, value: Any) -> Iterable[float]:
        """The numbers that a field holds."""
        return (value,)

    @classmethod
    def published(cls, sequence_length: int, **terms: Any) -> Objective:
        """The objective of the published code for sequences of this length (LRC, arXiv 2505.12781).

        That code sums its KL over the positions of a sequence and leaves out T², which is `kl_weight = L / T²` here
        (1.28 at L = 2048, T = 40), and compares attention outputs at the teacher's width.

        Args:
            sequence_length: L, tokens of one packed sequence.
            terms: Other fields, for instance `clone_weight=0.5`, the paper's for Qwen2.5.

        Raises:
            InputError: The length is no whole number above 0, or a term is not usable.
        """
        check_number("sequence_length", sequence_length, Range(1, 1e9, whole=True))
        given = objective_of(cls(), terms)
        published = {"kl_weight": sequence_length / given.temperature**2, "attn_out_tap": "teacher", **terms}
        return replace(given, **published)


def objective_of(objective: Objective | None, terms: Mapping[str, Any]) -> Objective:
    """`objective`, or the default one, with some of its fields changed.

    Raises:
        InputError: `objective` is none, a term is no field of it, or has a value that it can't have.
    """
    objective = Objective() if objective is None else objective
    if not isinstance(objective, Objective):
        raise InputError(
            f"objective: got {objective!r}, expected an Objective, for instance Objective(temperature=10.0)"
        )
    known = [field.name for field in fields(objective)]
    for name in terms:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"got an argument `{name}`, which is no field of the objective ({', '.join(known)}){hint}")
    return replace(objective, **terms)
