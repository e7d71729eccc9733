"""Activation checkpointing that keeps what was expensive: products and attention stay, the elementwise rest is redone.

Plain checkpointing runs a layer's whole forward pass again. Of what autograd keeps of a layer, about half is cheap to
make anew from the other half: normalised inputs, rotated heads, activated gates and their products. PyTorch's selective
checkpointing tells the two apart by operator, and replays a layer's operators in the order in which they ran. A tap's
comparison runs in that layer's forward pass only, so it has to happen beside the record.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..errors import InputError

RECOMPUTE = ("all", "elementwise")
# Ours, those of transformers, those of `torch.utils.checkpoint`.
OPTIONS = frozenset(
    ("recompute", "every_n_layers", "offload", "use_reentrant", "preserve_rng_state", "determinism_check", "early_stop")
)
# By name, as not every version of PyTorch has all of them. Batched products are those of eager attention, whose outputs
# are the largest of all; experts' grouped ones are not kept since transformers adds biases to them in place.
_EXPENSIVE = (
    "mm",
    "addmm",
    "_scaled_mm",
    "convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
KEPT = frozenset(getattr(torch.ops.aten, name).default for name in _EXPENSIVE if hasattr(torch.ops.aten, name))

_recording = threading.local()


def checkpointing_options(config: PretrainedConfig, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of transformers and `torch.utils.checkpoint` from ours, which have `recompute` beside them.

    Raises:
        InputError: The model can't be checkpointed, an option is unknown, a value is none of its option's, or
            `use_reentrant` is true, which detaches what happens inside a layer from the loss.
    """
    where = "activation checkpointing"
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not model.supports_gradient_checkpointing:
        raise InputError(f"{where}: {model.__name__} does not support it; leave training.activation_checkpointing out")
    chosen = {"use_reentrant": False, "recompute": "all"} | dict(options or {})
    if unknown := chosen.keys() - OPTIONS:
        raise InputError(f"{where}: unknown option `{min(unknown)}`; expected one of {', '.join(sorted(OPTIONS))}")
    if chosen["use_reentrant"]:
        raise InputError(f"{where}: got use_reentrant=True, expected False; taps lie in the layers")
    recompute = chosen.pop("recompute")
    if recompute not in RECOMPUTE:
        raise InputError(f"{where}: recompute: got {recompute!r}, expected {' or '.join(RECOMPUTE)}")
    every = chosen.get("every_n_layers", 1)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InputError(f"{where}: every_n_layers: got {every!r}, expected a whole number of 1 or more")
    return chosen | ({"context_fn": elementwise_only} if recompute == "elementwise" else {})


def enable_checkpointing(student: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Checkpoint the student's layers.

    Args:
        options: What `checkpointing_options` gave.
    """
    ours = dict(options)
    layers = {key: ours.pop(key) for key in ("every_n_layers", "offload") if key in ours}
    student.activation_checkpointing_enable(ours, **layers)
    for layer in student.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            own: Any = vars(layer)
            own["_gradient_checkpointing_func"] = _inside_in_eval(layer, own["_gradient_checkpointing_func"])


def set_training(student: PreTrainedModel, training: bool) -> None:
    """Say of the student whether it is trained. Its modules are in eval mode either way, so that it draws no noise.

    A layer that is to be checkpointed is the exception: transformers checkpoints a layer in training mode alone. Its
    forward pass runs in eval mode all the same (`enable_checkpointing`).
    """
    student.eval()
    student.training = training
    for layer in student.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = training


def _inside_in_eval(layer: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`checkpoint` with the layer itself in eval mode inside, in the forward pass and when it is recomputed."""

    def call(function: Callable[..., Any], *args: Any) -> Any:
        def run(*inputs: Any) -> Any:
            before, layer.training = layer.training, False
            try:
                return function(*inputs)
            finally:
                layer.training = before

        return checkpoint(run, *args)

    return call


def elementwise_only() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The `context_fn` of `torch.utils.checkpoint`: what surrounds a forward pass, and what its recomputation."""
    record, replay = create_selective_checkpoint_contexts(_policy)
    return _recorded(record), replay


@contextmanager
def beside_the_record() -> Iterator[None]:
    """Run this block outside selective checkpointing: backward will not replay its operators.

    Where a layer is being recorded, its recording mode is left for the block and entered again; elsewhere nothing
    happens. Only what the layer itself does not need may run here, as a tap's comparison.
    """
    record = getattr(_recording, "current", None)
    if record is None:
        yield
        return
    record.__exit__(None, None, None)
    _recording.current = None
    try:
        yield
    finally:
        record.__enter__()
        _recording.current = record


@contextmanager
def _recorded(record: AbstractContextManager[Any]) -> Iterator[None]:
    with record:
        _recording.current = record
        try:
            yield
        finally:
            _recording.current = None


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Keep the outputs of custom kernels (flash attention) too: they are expensive.
    kept = operator in KEPT or getattr(operator, "namespace", "aten") not in ("aten", "prim", "prims")
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
