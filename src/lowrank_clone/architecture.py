"""What the installed `transformers` says about an architecture: configs, models on the meta device, parts of a model.

Nothing here or anywhere else knows a family: it reads declarations that every model carries.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from .errors import InputError
from .sibling import sibling

Group = Literal["embedding", "head", "attention", "ffn", "experts", "vector", "inherited"]


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the decoder language model that `config` describes: itself, or its nested text model's.

    Raises:
        InputError: There is no such model.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise InputError(f"teacher of type `{kind}` is an encoder-decoder; expected a decoder-only language model")
    text = config.get_text_config(decoder=True)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"teacher of type `{kind}` has no causal language model in the installed transformers")
    if type(text) in MODEL_FOR_MASKED_LM_MAPPING and text.to_dict().get("is_decoder") is False:
        raise InputError(f"teacher of type `{kind}` is an encoder; expected a decoder-only language model")
    if _width_field(text) not in text.to_dict():
        raise InputError(
            f"teacher of type `{kind}` has no `hidden_size` in its config, so its residual width is unknown"
        )
    return text


def student_config(
    teacher: PretrainedConfig,
    hidden_size: int,
    overrides: Mapping[str, Any] | None = None,
    explicit_head_dim: bool = True,
) -> PretrainedConfig:
    """The teacher's config at residual width `hidden_size`, with every head kept at its own width.

    A family that has no `head_dim` of its own divides `hidden_size` by the heads, so the teacher's quotient is written
    down; the few that mean something else by the field are planned without (`explicit_head_dim`).
    """
    fields = teacher.to_dict()
    width = teacher.hidden_size
    if type(hidden_size) is not int or hidden_size < 1:
        raise InputError(f"student.hidden_size: got {hidden_size!r}, expected a positive integer")
    if hidden_size >= width:
        raise InputError(
            f"student.hidden_size: got {hidden_size}, expected less than the teacher's {width}; "
            "a clone is narrower than its teacher"
        )
    for key in overrides or {}:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"student.{key}: no such field in the config of `{teacher.model_type}`{hint}")
    if explicit_head_dim and fields.get("head_dim") is None and fields.get("num_attention_heads"):
        fields["head_dim"] = width // fields["num_attention_heads"]
    fields.update(overrides or {})
    fields[_width_field(teacher)] = hidden_size
    for transient in ("quantization_config", "_name_or_path", "architectures"):
        fields.pop(transient, None)
    try:
        # Through `from_dict`, so that what is planned is what a reader of the saved config.json will build.
        return type(teacher).from_dict(dict(fields))
    except Exception as error:  # each family's config refuses in its own way
        same = sibling(type(teacher), fields)
        if same is None:
            raise _cannot_build(teacher.model_type, hidden_size, error) from error
        return same


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """The model of this config with shapes and no memory."""
    try:
        with torch.device("meta"):
            # Of a copy: `from_config` writes the implementations into what it is given.
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation="eager", experts_implementation="eager"
            )
    except Exception as error:  # and so does each family's model
        raise _cannot_build(config.model_type, config.hidden_size, error) from error


def _cannot_build(model_type: str, hidden_size: int, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"`{model_type}` can't be built with hidden_size={hidden_size}: {type(error).__name__}: {reason}")


def _width_field(config: PretrainedConfig) -> str:
    """The field that this config stores its residual width in (`n_embd` for some)."""
    return str(config.attribute_map.get("hidden_size", "hidden_size"))


def check_counterparts(
    teacher: PreTrainedModel, student: PreTrainedModel, teacher_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    kind = teacher.config.model_type
    student_names = {name for name, _ in student.named_parameters(remove_duplicate=False)}
    for name in sorted(student_names ^ set(teacher_shapes)):
        owner = "student" if name in student_names else "teacher"
        raise InputError(f"`{kind}`: parameter `{name}` exists in the {owner} only; the two must differ in width alone")
    tied_in_student = student_names - {name for name, _ in student.named_parameters()}
    untied_in_teacher = {name for name, _ in teacher.named_parameters()}
    for name in sorted(tied_in_student & untied_in_teacher):
        raise InputError(
            f"`{kind}`: `{name}` is tied in the student but a matrix of its own in the teacher; "
            "leave `student.tie_word_embeddings` false"
        )
    buffers = {name: tuple(b.shape) for name, b in teacher.named_buffers()}
    for name, buffer in student.named_buffers():
        if buffers.get(name) != tuple(buffer.shape):
            raise InputError(
                f"`{kind}`: buffer `{name}` has shape {list(buffers.get(name, ()))} in the teacher and "
                f"{list(buffer.shape)} in the student; this family derives it from `hidden_size`"
            )


def check_runs(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Run the student on the meta device: shapes can look right where an inner norm is sized by `hidden_size`.

    What data decides, as the routing of experts, can't run there; so a failure that the teacher shares means nothing.
    """
    failure = _trial(student)
    if failure and re.sub(r"\d+", "", failure) != re.sub(r"\d+", "", _trial(teacher)):
        raise InputError(
            f"`{student.config.model_type}` can't run at hidden_size={student.config.hidden_size} ({failure}); this "
            "family sizes something of an inner width by `hidden_size`; it is not supported"
        )


def _trial(model: PreTrainedModel) -> str:
    """How a forward pass without data fails, up to the last block of a new kind, or nothing."""
    blocks = [model.get_submodule(name) for name in Groups(model).blocks]
    kinds = [tuple((name, p.shape) for name, p in block.named_parameters()) for block in blocks]
    repeated = next((i for i in range(len(kinds)) if not set(kinds[i:]) - set(kinds[:i])), len(kinds))
    handles = [block.register_forward_pre_hook(_stop) for block in blocks[repeated : repeated + 1]]
    try:
        with torch.no_grad(), torch.device("meta"):
            ids = torch.zeros(1, 2, dtype=torch.long)
            model(input_ids=ids, position_ids=ids, attention_mask=torch.zeros(1, 1, 2, 2), use_cache=False)
    except Exception as error:
        # What does not fit raises a plain RuntimeError; anything else is a matter of the meta device.
        return " ".join(str(error).split()) if type(error) is RuntimeError else ""
    finally:
        for handle in handles:
            handle.remove()
    return ""


def _stop(*_: Any) -> None:
    raise StopIteration


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


def input_axis(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int | None]) -> int:
    """-1 where this module stores matrices [out, in], -2 where it stores [in, out].

    Raw expert tensors declare it (`is_transposed`). Where two of them do not, the one with the larger inner width
    reads: gate and up are stored together, down alone.
    """
    if isinstance(module, Conv1D):
        return -2
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return -2 if declared else -1
    experts = {name: shape for name, shape in shapes.items() if len(shape) == 3 and not isinstance(module, _ConvNd)}
    widths = {name: shape[-3 - (axes[name] or -1)] for name, shape in experts.items()}
    if len(set(widths.values())) > 1:
        return axes[max(widths, key=lambda name: widths[name])] or -1
    return -1


def residual_axis(
    name: str, teacher: tuple[int, ...], student: tuple[int, ...], d_t: int, d_s: int, model_type: str
) -> int | None:
    """The axis (negative) that went from `d_T` to `d_S`, or None where the shapes are equal."""
    changed = [i - len(teacher) for i in range(len(teacher)) if teacher[i] != student[i]]
    if not changed:
        return None
    if len(changed) == 1 and (teacher[changed[0]], student[changed[0]]) == (d_t, d_s):
        return changed[0]
    raise InputError(
        f"`{model_type}`: `{name}` goes from {list(teacher)} to {list(student)} when hidden_size goes from {d_t} to "
        f"{d_s}; expected one axis {d_t} -> {d_s}. This family ties an inner width to `hidden_size`, so only another "
        "architecture would be narrower; it is not supported"
    )


def is_bias_of(shape: tuple[int, ...], axis: int | None, write: tuple[int, ...], write_axis: int | None) -> bool:
    """Whether a parameter of this shape is the bias of a write: the write's shape without its input axis."""
    if axis != -1 or write_axis is None:
        return False
    input_axis = len(write) - 3 - write_axis
    return shape == tuple(n for i, n in enumerate(write) if i != input_axis)
