"""Which part of a model a module belongs to: its blocks, and the groups of its matrices."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError
from .roles import Group


class Groups:
    """Which part of the model a matrix belongs to, from the model's own declarations and structure."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model_type = model.config.model_type
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is None:
            raise InputError(f"`{self.model_type}` declares no output embeddings, so it has no LM head to clone")
        self._embedding = {n for n, m in model.named_modules() if m is embedding or isinstance(m, nn.Embedding)}
        self._head = {n for n, m in model.named_modules() if m is head}
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        self._lists = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
        self._attention = self._attention_modules(model)
        # The names of the blocks, which run one after the other.
        self.blocks = [
            f"{prefix}.{key}" for prefix in self._lists for key, _ in model.get_submodule(prefix).named_children()
        ]

    def _attention_modules(self, model: PreTrainedModel) -> set[str]:
        """Modules that the model records attentions from, or the first of several children of a block."""
        recorded = (getattr(model, "_can_record_outputs", None) or {}).get("attentions", ())
        recorded = recorded if isinstance(recorded, (list, tuple)) else [recorded]
        classes: tuple[Any, ...] = tuple(getattr(entry, "target_class", entry) for entry in recorded)
        found = {name for name, module in model.named_modules() if classes and isinstance(module, classes)}
        for prefix in self._lists:
            for index, block in model.get_submodule(prefix).named_children():
                path = f"{prefix}.{index}"
                mixing = [key for key, child in block.named_children() if any(p.ndim > 1 for p in child.parameters())]
                if len(mixing) > 1 and not any(name.startswith(path + ".") for name in found):
                    found.add(f"{path}.{mixing[0]}")
        return found

    def layer(self, name: str) -> int | None:
        """Index of the block that owns this parameter."""
        for prefix in self._lists:
            if name.startswith(prefix + "."):
                return int(name[len(prefix) + 1 :].split(".", 1)[0])
        return None

    def of(self, name: str, module: str, shape: tuple[int, ...]) -> Group:
        """The group of a matrix."""
        if module in self._embedding:
            return "embedding"
        if module in self._head:
            return "head"
        if len(shape) > 2:
            return "experts"
        inside = any(module == name or module.startswith(name + ".") for name in self._attention)
        return "attention" if inside else "ffn"


def block_names(model: PreTrainedModel) -> list[str]:
    """Names of the model's blocks: of its lists of blocks, the one that holds most parameters."""
    chains: dict[str, list[str]] = {}
    for name in Groups(model).blocks:
        chains.setdefault(name.rpartition(".")[0], []).append(name)
    if not chains:
        raise InputError(f"start: `{model.config.model_type}` has no list of blocks to calibrate; use `random`")
    return max(chains.values(), key=lambda names: sum(_size(model.get_submodule(name)) for name in names))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
