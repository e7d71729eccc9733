"""From the recipe's `method` section to a clone: what is compared, where it starts, what changes on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import InputError
from ..factors.parameterize import check_kinds
from ..plan.roles import Plan, TapSpec
from ..starts.registry import check_basis
from .schedule import check_switches, kinds_at, objective_at
from .schema import MethodConfig

# The papers' names of a dense block's taps (LRC, arXiv 2505.12781, section 3.2) and the modules that bear them.
READ_TAPS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "gate": "gate_proj", "up": "up_proj"}
BASELINES: dict[str, dict[str, Any]] = {
    "scratch": {"kl_weight": 0.0, "clone_weight": 0.0},
    "logit_kd": {"clone_weight": 0.0},
    "channels_dense": {"clone_weight": 0.0},
}


def check_method(plan: Plan, method: MethodConfig, max_steps: int | None = None) -> None:
    """Check all of the section that needs the plan and no weights.

    Raises:
        InputError: Unknown tap or group names, a switch beyond the end, or settings that exclude each other.
    """
    choose_taps(plan, method)
    try:
        check_kinds(plan, kinds_at(method, None))
    except InputError as error:
        raise InputError(f"method.{error}") from error
    if max_steps is not None:
        check_switches(method, max_steps)
    if method.baseline is not None and (method.parameterization != "projected" or method.start_from is not None):
        raise InputError(
            f"method.baseline: `{method.baseline}` sets the start and the parameterization itself; remove "
            "method.parameterization and method.start_from"
        )
    tied = plan.student_config.tie_word_embeddings or method.head_factor == "embedding"
    if method.init == "calibrated":
        try:
            check_basis(method.calibration.basis, tied)
        except InputError as error:
            raise InputError(f"method.calibration.{error}") from error


def clone_settings(plan: Plan, method: MethodConfig) -> dict[str, Any]:
    """Keyword arguments of `CloneModel` but for its start."""
    settings: dict[str, Any] = {
        "objective": replace(objective_at(method, 0, 1), **BASELINES.get(method.baseline or "", {})),
        "factor_std": method.factor_std,
        "taps": choose_taps(plan, method),
        "parameterization": kinds_at(method, 0),
        "head_factor": method.head_factor,
        "execution": method.execution,
    }
    if method.baseline == "channels_dense":
        settings["parameterization"] = {role.group: "dense" for role in plan.of_kind("read", "write")}
    return settings


def choose_taps(plan: Plan, method: MethodConfig) -> Callable[[TapSpec], bool]:
    """The predicate that `method.taps` describes.

    Raises:
        InputError: It names a tap that the plan has not, or layers beyond the last.
    """
    off, layers = set(method.taps.off), method.taps.layers
    known = {name for tap in plan.taps for name in _names(tap)}
    for name in sorted(off - known):
        raise InputError(f"method.taps.off: got `{name}`, expected some of {', '.join(sorted(known))}")
    last = max((tap.layer for tap in plan.taps), default=0)
    if layers is not None and not 0 <= layers[0] <= layers[1] <= last:
        raise InputError(f"method.taps.layers: got {layers}, expected first and last of the layers 0 to {last}")
    return lambda tap: not off & _names(tap) and (layers is None or layers[0] <= tap.layer <= layers[1])


def _names(tap: TapSpec) -> set[str]:
    """What a recipe may call this tap."""
    leaf = tap.module.rsplit(".", 1)[-1]
    names = {leaf} | {paper for paper, module in READ_TAPS.items() if module == leaf}
    if tap.kind == "write":
        names.add("attn_out" if tap.group == "attention" else "ffn_out")
    return names


def last_kinds(plan: Plan, method: MethodConfig) -> dict[str, str]:
    """The kind of each group after the last switch, those that a baseline sets included."""
    return {**clone_settings(plan, method)["parameterization"], **kinds_at(method, None)}


def calibration_batches(blocks: Sequence[Any], method: MethodConfig, batch_size: int = 4) -> list[torch.Tensor]:
    """[batch, length] token ids of the first training blocks, `method.calibration.tokens` of them or all there are.

    Blocks with padding come last, since activations on it are none of a text.
    """
    count = -(-method.calibration.tokens // len(blocks[0]["input_ids"]))
    rows = [blocks[i] for i in range(min(2 * count, len(blocks)))]
    rows.sort(key=lambda row: "attention_mask" in row)
    ids = torch.stack([torch.as_tensor(row["input_ids"]) for row in rows[:count]])
    return list(ids.split(batch_size))
