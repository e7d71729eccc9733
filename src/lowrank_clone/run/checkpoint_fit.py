"""Whether a recipe can go on from a checkpoint, or begin at one; told from its plan, without any weights."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState

from ..errors import InputError
from ..factors.links import TARGET
from ..factors.parameterize import BECOMES, check_start
from ..factors.transfer import expected_links, sources
from ..plan.roles import Plan
from ..recipe.method import choose_taps, clone_settings
from ..recipe.schedule import kinds_at
from ..recipe.schema import MethodConfig
from ..training.checkpoint import check_plan, check_resumable
from ..training.checksums import damage
from ..training.last_checkpoint import STATE_FILE
from ..training.plan_file import Stored, read_stored

# Baselines whose students have nothing of the teacher's.
FROM_SCRATCH = ("scratch", "logit_kd")


def check_beginning(plan: Plan, method: MethodConfig, folder: Path) -> None:
    """Check that a new run can begin at the factors of a checkpoint (`method.start_from`); reads its files once.

    Raises:
        InputError: The checkpoint is damaged, is another plan's, or holds no factors for this method.
    """
    place = f"method.start_from: {folder}"
    stored = read_stored(folder)
    if (wrong := damage(folder)) is not None:
        raise InputError(f"{place}: {wrong}; use another checkpoint")
    check_plan(plan, folder, scratch=method.baseline in FROM_SCRATCH)
    kinds = clone_settings(plan, method)["parameterization"]
    check_start(stored.kinds, kinds, place)
    links = expected_links(plan, kinds, method.head_factor == "embedding", _targets(plan, method, stored))
    sources(plan, stored.links, stored.kinds, links, place)


def check_going_on(plan: Plan, method: MethodConfig, folder: Path) -> None:
    """Check that a run can go on from its checkpoint with this method (`--resume`).

    Raises:
        InputError: It is another plan's, holds no optimiser, or is past a switch that this recipe makes later.
    """
    check_plan(plan, folder, scratch=method.baseline in FROM_SCRATCH)
    check_resumable(folder)
    stored, step = read_stored(folder), TrainerState.load_from_json(str(folder / STATE_FILE)).global_step
    kinds = clone_settings(plan, method)["parameterization"] | kinds_at(method, max(step - 1, 0))
    for group, kind in stored.kinds.items():
        wanted = kinds.get(group, "projected")
        if wanted not in BECOMES[kind]:
            raise InputError(
                f"method.parameterization.{group}: got {wanted} at step {step}, but the run to resume is `{kind}`; "
                f"a matrix can't go back to projected; set it to {kind} from that step or earlier"
            )


def _targets(plan: Plan, method: MethodConfig, stored: Stored) -> list[str]:
    """Writes whose taps need a Z here. Those that no module of the earlier run computed may be none here either."""
    if method.clone_weight == 0:
        return []
    keep = choose_taps(plan, method)
    writes = [tap for tap in plan.taps if tap.kind == "write" and keep(tap)]
    ours = [tap.name for tap in writes if method.attn_out_tap == "student" or tap.group != "attention"]
    return [name for name in ours if name in stored.taps or name + TARGET in stored.links]
