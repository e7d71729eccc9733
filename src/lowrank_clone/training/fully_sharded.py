"""FSDP2 (`torch.distributed.fsdp.fully_shard`) for a clone: what is sharded, and how it is read and written as a whole.

Every process keeps a part of the student's leaves, of the factors, of their optimiser's state and, if asked, of the
teacher. Each block is gathered when it runs. What belongs to no block (embeddings, heads, the last norm, the leaves of
the taps' targets) is gathered for the whole of `CloneModel.forward`, since the heads' weights are read there, outside
their modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from ..errors import InputError
from ..model import CloneModel
from ..plan.layers import model_blocks
from ..shards import shard, whole
from .digest import digest_of, note_digest
from .optim import is_bound, plain, refresh


@torch.no_grad()
def shard_clone(clone: CloneModel, teacher: bool, reshard_after_forward: bool = True) -> None:
    """Shard a clone over all processes, which hold the same teacher; factors become those of the first one.

    Args:
        teacher: Whether to shard the teacher too.
        reshard_after_forward: Whether a block's parts are gathered once more for its backward pass.

    Raises:
        InputError: The clone's layers are compiled.
    """
    if clone.compiled:
        raise InputError(
            "method.compile: got true under FSDP2, whose gathering of a block is not compiled; set it false, or use DDP"
        )
    share_factors(clone)
    mesh = init_device_mesh(clone.student.device.type, (distributed.get_world_size(),))
    digest = digest_of(clone.teacher)
    before = dict(clone.named_parameters(remove_duplicate=False))
    # Gradients are summed in float32, whatever the leaves' type.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if clone.student.dtype.itemsize == 2 else None)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for model in (clone.student, clone.teacher) if teacher else (clone.student,):
        for name in model_blocks(model):
            fully_shard(model.get_submodule(name), reshard_after_forward=reshard_after_forward, **options)
    kept = set() if teacher else set(clone.teacher.parameters())
    # Always resharded: evaluation leaves nothing gathered that the next push would not reach.
    fully_shard(clone, reshard_after_forward=True, ignored_params=kept, **options)
    after = dict(clone.named_parameters(remove_duplicate=False))
    successors = {id(old): after[name] for name, old in before.items()}
    clone.factors.shard(mesh, successors, dict(clone.teacher.named_parameters(remove_duplicate=False)))
    clone.follow(successors)
    note_digest(clone.teacher, digest)


@torch.no_grad()
def share_factors(clone: CloneModel) -> None:
    """Let all processes have the first one's factors."""
    for factor in clone.factors.parameters():
        distributed.broadcast(factor.data, src=0)
    clone.factors.push()


def is_sharded(clone: CloneModel) -> bool:
    """Whether `shard_clone` was here."""
    return clone.factors.mesh is not None


def follow_shards(optimizer: Optimizer, clone: CloneModel) -> None:
    """Let an optimiser that was made before its factors were sharded hold them as they are now."""
    if is_bound(optimizer, clone.factors):
        refresh(optimizer, clone.factors)


def whole_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors gathered one by one onto the CPU; every process has to call. Shared ones stay shared.

    Tensors that are whole already stay where they are.

    Args:
        keep: Whether this process is one that wants them; others get nothing.
    """
    found: dict[int, Tensor | None] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            gathered = whole(tensor.detach())
            found[id(tensor)] = None if not keep else gathered.cpu() if isinstance(tensor, DTensor) else gathered
    gathered_by_name = {name: found[id(tensor)] for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in gathered_by_name.items() if tensor is not None}


@contextmanager
def whole_state(optimizer: Optimizer, keep: bool) -> Iterator[None]:
    """In this context the optimiser's `state_dict()` is that of one that is not sharded. Every process has to enter.

    Args:
        keep: Whether this process will ask for it.
    """
    one = plain(optimizer)
    state = one.state_dict()
    gathered: dict[Any, dict[str, Any]] = {}
    for index, values in state["state"].items():
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        gathered[index] = {**values, **whole_tensors(tensors, keep)}
    vars(one)["state_dict"] = lambda: {**state, "state": gathered}
    try:
        yield
    finally:
        del vars(one)["state_dict"]


def take_whole_states(optimizer: Optimizer) -> None:
    """Let the `load_state_dict` of an optimiser of sharded factors take the state of one that is not sharded."""

    def take_part(one: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = dict(enumerate(p for group in one.param_groups for p in group["params"]))
        sharded = {
            index: {name: _like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
            if index in parameters
        }
        return {**state, "state": {**state["state"], **sharded}}

    plain(optimizer).register_load_state_dict_pre_hook(take_part)


def _like(value: Any, parameter: nn.Parameter) -> Any:
    """What an optimiser keeps of a sharded factor: of the factor's rows in parts, of anything else whole."""
    plain_value = isinstance(value, Tensor) and not isinstance(value, DTensor) and value.ndim > 0
    if not plain_value or not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.device)
    if value.shape[0] == parameter.shape[0]:
        return shard(value, parameter.device_mesh)
    return DTensor.from_local(value, parameter.device_mesh, [Replicate()], run_check=False)
