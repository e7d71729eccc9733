"""What the tests of diagnostics look at: small clones, blocks of text, and what modules return."""

from __future__ import annotations

from typing import Any

import torch
from tiny import batch, tiny_model

from lowrank_clone.model import CloneModel


def blocks(rows: int = 3, length: int = 12) -> list[dict[str, Any]]:
    return [{"input_ids": row} for row in batch(rows, length).tolist()]


def clone_of(family: str = "llama", **kwargs: Any) -> CloneModel:
    # transformers' grouped product of experts has no float64.
    dtype = torch.float32 if "moe" in family or family == "gpt_oss" else torch.float64
    return CloneModel(tiny_model(family, dtype=dtype), 16, factor_std=0.2, **kwargs)


def outputs(model: Any, module: str, rows: list[dict[str, Any]]) -> torch.Tensor:
    """[n, w]: what a module returns for all blocks."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_hook(lambda m, args, out: seen.append(out.flatten(0, -2)))
    with torch.no_grad():
        model(torch.tensor([row["input_ids"] for row in rows]))
    hook.remove()
    return torch.cat(seen)


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
