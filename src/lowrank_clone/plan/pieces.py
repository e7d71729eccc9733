"""One model's tensors under the names of another that stores the same: as they are, or fused matrices cut in pieces."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(model: nn.Module) -> Shapes:
    """Shapes of a model's parameters by name, tied ones under each of theirs."""
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def pieces(whole: Shapes, cut: Shapes) -> dict[str, list[str]] | None:
    """Which tensors of `cut` make up each of `whole`, stacked along the rows, or None where the two don't correspond.

    A tensor that only `whole` has is several linears of `cut`, fused: they belong to the same module, have the same
    columns, and follow one another in the order of `cut`.
    """
    found = {name: [name] for name in whole if name in cut}
    beyond = [name for name in cut if name not in whole]
    for name in whole.keys() - cut.keys():
        found[name] = [part for part in beyond if _place(part) == _place(name)]
    for name, parts in found.items():
        rows = sum(cut[part][0] for part in parts if cut[part])
        same = parts == [name] and whole[name] == cut[name]
        if not same and (rows != whole[name][0] or any(cut[part][1:] != whole[name][1:] for part in parts)):
            return None
    # The rows of two fused matrices of one module may both add up; then their pieces are not known apart.
    used = [part for parts in found.values() for part in parts]
    return found if sorted(used) == sorted(cut) else None


def cut_tensors(tensors: Mapping[str, Tensor], cut: Shapes) -> dict[str, Tensor]:
    """`tensors` under the names of `cut`, as views of the same memory; the two must correspond."""
    found = pieces({name: tuple(t.shape) for name, t in tensors.items()}, cut)
    assert found is not None
    views: dict[str, Tensor] = {}
    for name, parts in found.items():
        if parts == [name]:
            views[name] = tensors[name]
        else:
            views.update(zip(parts, tensors[name].split([cut[part][0] for part in parts]), strict=True))
    return views


def _place(name: str) -> tuple[str, str]:
    """The module that a linear's parent is, and which of the linear's tensors this is."""
    linear, _, kind = name.rpartition(".")
    return linear.rpartition(".")[0], kind
