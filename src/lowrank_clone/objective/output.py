"""What a forward pass of a clone returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class CloneOutput(ModelOutput):
    """Scalars of one forward pass, each a mean over the counted tokens. Only `loss` carries gradient.

    loss: `lm_weight * lm + kl_weight * kl + clone_weight * clone`. lm: nats per token. kl: T^2 times nats per token.
    clone: the sum of `taps`, which holds every tap's MSE by the student's parameter name. relative: in evaluation mode,
    each tap's MSE before it is scaled, and the mean square of its target, [2]; their ratio is ||s - t||^2 / ||t||^2.
    """

    loss: Tensor | None = None
    lm: Tensor | None = None
    kl: Tensor | None = None
    clone: Tensor | None = None
    taps: dict[str, Tensor] | None = None
    relative: dict[str, Tensor] | None = None
