"""The LM head: what it is given, and how its output becomes logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..hooks import evaluating, hooked
from ..precision import wide_dtype


def widens_products(device: str) -> bool:
    """Whether devices of this type give the product of 16-bit factors in float32."""
    return device == "cuda"


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap(scale * (h W^T + b))`, the cap `c * tanh(x / c)` where there is one.

    weight: [V, d]; bias: [V] or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def widened(self) -> Head:
        """The same head with a weight from which `logits` makes float32 products on this device."""
        weight = self.weight.detach()
        if weight.element_size() == 2 and not widens_products(weight.device.type):
            weight = weight.float()
        return replace(self, weight=weight)

    def of(self, model: PreTrainedModel) -> Head:
        """The same head with the parameters that the model's has now: engines that shard change them while it runs."""
        head = model.get_output_embeddings()
        return replace(self, weight=head.weight, bias=None if self.bias is None else head.bias)

    def buffer(self, rows: int, like: Tensor) -> Tensor | None:
        """[rows, V] of the dtype and device of `like` for `logits`, or None where a product makes its own."""
        return None if self.weight.element_size() == 2 else like.new_empty(rows, len(self.weight))

    def logits(self, hidden: Tensor, buffer: Tensor | None) -> Tensor:
        """[n, d] -> [n, V] in float32 (float64 for float64 input); the product itself is never rounded to 16 bits.

        `buffer` has n rows or more.
        """
        if buffer is None:
            logits = torch.mm(hidden.to(self.weight.dtype), self.weight.T, out_dtype=torch.float32)
        elif self.weight.dtype == buffer.dtype:
            logits = torch.mm(hidden.to(self.weight.dtype), self.weight.T, out=buffer[: len(hidden)])
        else:
            logits = buffer[: len(hidden)].copy_(hidden.to(self.weight.dtype) @ self.weight.T)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


class HeadInput:
    """What the LM head was given: `hidden` [batch, length, d]."""

    hidden: Tensor


@contextmanager
def head_input(model: PreTrainedModel) -> Iterator[HeadInput]:
    """Catch the final hidden states on their way into the LM head, which then sees the last position only.

    The model runs as it is, whatever it does before the head, and never builds its [batch, length, V] logits.
    """
    caught = HeadInput()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        caught.hidden = args[0]
        return (args[0][..., -1:, :], *args[1:]), kwargs

    with hooked([(model.get_output_embeddings(), before)], "before"):
        yield caught


@torch.no_grad()
def read_head(model: PreTrainedModel) -> Head:
    """How this model turns its LM head's output into logits.

    Families scale it (Granite, Cohere) or cap it (Gemma 2), some by constants that they derive from `hidden_size`. So
    known numbers are put in the place of the head's output in one short forward pass: small ones show the scale, huge
    ones the cap, those between are the check.

    Raises:
        InputError: The logits are no scaled or capped output of the head.
    """
    head = model.get_output_embeddings()
    wide = wide_dtype(model.dtype)
    sizes = torch.tensor([1e-3, 1e6, 1.0, 10.0, 100.0], dtype=wide, device=model.device)
    probe = sizes.view(1, -1, 1) * torch.linspace(-1, 1, model.config.vocab_size, dtype=wide, device=model.device)
    ids = torch.zeros(1, len(sizes), dtype=torch.long, device=model.device)
    with evaluating(model), hooked([(head, lambda *_: probe)], "after"):
        logits = model(input_ids=ids, use_cache=False).logits.double()
    shown = probe.double()
    scale = float((logits[0, 0] @ shown[0, 0]) / (shown[0, 0] @ shown[0, 0]))
    scale = 1.0 if abs(scale - 1) < 1e-4 else scale
    cap = float(logits[0, 1].max())
    softcap = None if abs(cap - 1e6 * scale) < 1e-2 * cap else cap
    expected = shown * scale if softcap is None else softcap * torch.tanh(shown * scale / softcap)
    if not torch.allclose(expected, logits, rtol=1e-2, atol=1e-5):
        raise InputError(
            f"`{model.config.model_type}`: its logits are no scaled or capped output of its LM head, so the loss can't "
            "be taken from hidden states; this family is not supported"
        )
    return Head(head.weight, getattr(head, "bias", None), scale, softcap)
