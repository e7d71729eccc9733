"""A module whose leaves are generated from factors outside its tree: they move, are cast, saved and loaded together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..precision import wide_dtype
from .factors import Factors

Successors = Mapping[int, nn.Parameter]
STATE = "_extra_state"  # torch's key for what `get_extra_state` returns


class FactoredModule(nn.Module):
    """What PyTorch asks of a module, for one with `factors`; they are no parameters of it (see `CloneModel`)."""

    student: PreTrainedModel
    factors: Factors
    kinds: dict[str, str]
    compiled = False

    def reparameterize(self, kinds: Mapping[str, str]) -> None:
        """Let groups of matrices be of these kinds."""
        raise NotImplementedError

    def follow(self, successors: Successors) -> None:
        """Take the new parameters wherever this module holds one of the old, by their identity, or holds tensors."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast everything: the modules, the factors and their bases. Factors stay wide (`precision.py`)."""
        before, dtype = dict(self.named_parameters(remove_duplicate=False)), self.student.dtype
        super()._apply(fn, recurse)
        after = dict(self.named_parameters(remove_duplicate=False))
        # Most moves keep the parameters and change what they hold; one to the meta device makes new ones.
        successors = {id(old): after[name] for name, old in before.items()}
        self.factors.follow(fn, successors, wide_dtype(self.student.dtype))
        self.follow(successors)
        if self.student.dtype != dtype:
            self.factors.push(self.factors)
        return self

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError(
            "nn.DataParallel: its copies of a clone would train nothing; start several processes, `lrc train RECIPE "
            "--launch ddp` or `accelerate launch`"
        )

    def __getstate__(self) -> dict[str, Any]:
        if self.compiled:
            raise InputError(
                "a clone whose layers are compiled can't be copied or pickled; do it before `compile_layers`, or use "
                "`save_clone`"
            )
        return self.__dict__

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds beside the modules' tensors: the factors, which the leaves are generated from."""
        return {"kinds": dict(self.kinds), "factors": self.factors.state_dict()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the factors of a `state_dict` of a clone of the same plan.

        Raises:
            InputError: It has other factors.
        """
        self.reparameterize(state["kinds"])
        if missing := set(self.factors) - set(state["factors"]):
            raise InputError(f"load_state_dict: it holds no factor `{min(missing)}`; expected a clone of the same plan")
        self.factors.load(state["factors"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the `state_dict()` of a clone of the same plan, factors included.

        Raises:
            InputError: It holds no factors, or other ones; or `assign` would put tensors in the place of the leaves.
        """
        if assign or STATE not in state_dict:
            got = "assign=True" if assign else "no factors"
            raise InputError(f"load_state_dict: got {got}, expected a CloneModel's own state_dict() and assign=False")
        result = super().load_state_dict(state_dict, strict)
        self.factors.push(self.factors)
        return result
