"""Which starts there are: `method.init: channels` in a recipe means the function `start` of `channels.py`.

Every file of this folder but this one is a start, so a new one is one new file. What several starts use is in
`calibration/`. This file imports neither torch nor transformers, since the recipe's schema needs the names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import InputError
from ..ranges import Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..plan.roles import Plan

# What the student's stream holds in a calibrated start, see `calibration/stream_basis.py`.
StreamBasis = Literal["reads", "channels", "pca"]

# Standard deviation of normal factors.
FACTOR_STDS = Range(1e-8, 10)

STARTS: tuple[str, ...] = tuple(
    module.name
    for module in iter_modules(sys.modules[__package__].__path__)
    if not module.ispkg and module.name != "registry"
)


@dataclass(frozen=True)
class StartInputs:
    """What a start may look at.

    teacher: Frozen and in eval mode. plan: Of the clone. batches: Token ids [batch, length] of training text.
    share_head: Whether an untied LM head has the embedding's factor. factor_std, seed: Of normal factors.
    basis: What the student's stream holds. progress: Whether to show progress.
    """

    teacher: PreTrainedModel
    plan: Plan
    batches: Sequence[Tensor]
    share_head: bool = False
    factor_std: float = 0.02
    seed: int = 0
    basis: StreamBasis = "reads"
    progress: bool = False


def check_basis(basis: str, tied: bool) -> None:
    """Refuse a basis that does not go with the head.

    Args:
        tied: Whether the head has no factor of its own.

    Raises:
        InputError: There is no such basis, or it is not one for such a head.
    """
    if basis not in get_args(StreamBasis):
        raise InputError(f"basis: got {basis!r}, expected one of {', '.join(get_args(StreamBasis))}")
    if basis == "pca" and tied:
        raise InputError(
            "basis: `pca` does not go with a tied head: its gain between the stream and the head is not diagonal in "
            "principal components, and the head has no factor to absorb it; use `reads`, which decodes the tied head"
        )


def make_start(name: str, inputs: StartInputs) -> dict[str, Tensor]:
    """The start of this name: factors [d_T, d_S] and vectors [d_S] by the student's parameter name, float32.

    Vectors that it leaves out start as their family starts them.

    Raises:
        InputError: The start can't be made of these inputs.
    """
    start: Callable[[StartInputs], dict[str, Tensor]] = import_module(f".{name}", __package__).start
    return start(inputs)
