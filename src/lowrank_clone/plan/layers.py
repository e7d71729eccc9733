"""Which part of a model a module belongs to: its blocks, and the groups of its matrices."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError
from .roles import Group


def model_blocks(model: nn.Module) -> list[str]:
    """Names of the model's blocks (layers), in the order of its modules: what is meant by a block everywhere.

    A block is an entry of an outermost `ModuleList` that holds a matrix. So lists inside blocks (experts) and lists
    of tables (rotary embeddings) hold none.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
    entries = ((f"{name}.{key}", child) for name in outer for key, child in model.get_submodule(name).named_children())
    return [name for name, child in entries if any(p.ndim > 1 for p in child.parameters())]


class Groups:
    """Which part of the model a matrix belongs to, from the model's own declarations and structure."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model_type = model.config.model_type
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is None:
            raise InputError(f"`{self.model_type}` declares no output embeddings, so it has no LM head to clone")
        self._embedding = {n for n, m in model.named_modules() if m is embedding or isinstance(m, nn.Embedding)}
        self._head = {n for n, m in model.named_modules() if m is head}
        self._blocks = model_blocks(model)
        self._attention = self._attention_modules(model)

    def _attention_modules(self, model: PreTrainedModel) -> set[str]:
        """Modules that the model records attentions from, or the first of several children of a block."""
        recorded = (getattr(model, "_can_record_outputs", None) or {}).get("attentions", ())
        recorded = recorded if isinstance(recorded, (list, tuple)) else [recorded]
        classes: tuple[Any, ...] = tuple(getattr(entry, "target_class", entry) for entry in recorded)
        found = {name for name, module in model.named_modules() if classes and isinstance(module, classes)}
        for block in self._blocks:
            children = model.get_submodule(block).named_children()
            mixing = [name for name, child in children if any(p.ndim > 1 for p in child.parameters())]
            if len(mixing) > 1 and not any(name.startswith(block + ".") for name in found):
                found.add(f"{block}.{mixing[0]}")
        return found

    def layer(self, name: str) -> int | None:
        """Index of the block that owns this parameter."""
        for block in self._blocks:
            if name.startswith(block + "."):
                return int(block.rpartition(".")[2])
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
