"""What a checkpoint holds and what it is checked for: the factors of one plan and one teacher, never the teacher."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError
from ..model import CloneModel
from ..plan.roles import Plan

FACTORS_FILE, PLAN_FILE = "factors.safetensors", "plan.json"
# What `CloneTrainer` writes into a checkpoint's folder.
CHECKPOINT_FILES = re.compile(
    r"factors\.safetensors|plan\.json|trainer_state\.json|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth"
)


def save_clone(clone: CloneModel, folder: Path) -> None:
    """Write what training changes: the factors and the taps' running mean squares, and the plan they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"factor:{name}": value for name, value in clone.factors.state_dict().items()}
    if clone.target_squares is not None:
        tensors |= {f"target_squares:{name}": value for name, value in clone.target_squares.state_dict().items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / FACTORS_FILE)
    (folder / PLAN_FILE).write_text(
        json.dumps({**fingerprint(clone.plan), "teacher": _digest(clone), "kinds": clone.kinds})
    )


def load_clone(clone: CloneModel, folder: Path) -> None:
    """Load what `save_clone` wrote, and generate the student from it.

    Raises:
        InputError: `folder` is no such checkpoint, or belongs to another plan.
    """
    check_plan(clone.plan, folder)
    plan = _read_plan(folder)
    if plan["teacher"] != _digest(clone):
        raise InputError(f"{folder}: its teacher has the same shapes but other weights; resume with the same teacher")
    clone.reparameterize(plan["kinds"])
    tensors = load_file(folder / FACTORS_FILE)
    of_kind: dict[str, dict[str, Tensor]] = {"factor": {}, "target_squares": {}}
    for key, value in tensors.items():
        kind, name = key.split(":", 1)
        of_kind[kind][name] = value
    clone.factors.load(of_kind["factor"])
    if clone.target_squares is not None:
        clone.target_squares.load_state_dict(of_kind["target_squares"], clone.student.device)


def check_plan(plan: Plan, folder: Path) -> None:
    """Refuse a checkpoint of another architecture, width or parameter; needs no weights.

    Raises:
        InputError: What differs first.
    """
    theirs, ours = _read_plan(folder), fingerprint(plan)
    for key in ("model_type", "teacher_width", "student_width"):
        if theirs[key] != ours[key]:
            raise InputError(
                f"{folder}: its {key} is {theirs[key]}, this run's is {ours[key]}; resume with the same plan"
            )
    for name in sorted(set(theirs["roles"]) | set(ours["roles"])):
        if theirs["roles"].get(name) != ours["roles"].get(name):
            raise InputError(f"{folder}: its parameter `{name}` differs from this run's; resume with the same teacher")


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What must be equal for a checkpoint of one run to be loaded into another."""
    return {
        "model_type": plan.teacher_config.model_type,
        "teacher_width": plan.teacher_width,
        "student_width": plan.student_width,
        "roles": {name: [role.kind, *role.student_shape] for name, role in plan.roles.items()},
    }


def _read_plan(folder: Path) -> dict[str, Any]:
    if not (folder / FACTORS_FILE).is_file() or not (folder / PLAN_FILE).is_file():
        raise InputError(f"{folder}: no checkpoint of a clone there ({FACTORS_FILE} and {PLAN_FILE} are expected)")
    plan: dict[str, Any] = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    return plan


def _digest(clone: CloneModel) -> str:
    """Digest of the first 1,024 numbers of every teacher tensor."""
    digest = hashlib.sha256()
    for _, parameter in sorted(clone.teacher.named_parameters()):
        digest.update(parameter.detach().flatten()[:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run. `trainer_state.json` is written last, so a cut-off save lacks it."""
    found = complete_checkpoints(output_dir)
    return found[max(found)] if found else None


def complete_checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The folders of a run's complete checkpoints by their step."""
    return {
        int(match[1]): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)) and _complete(folder)
    }


def remove_checkpoint(folder: Path) -> None:
    """Delete what `CloneTrainer` wrote into a checkpoint's folder, and the folder if nothing else is in it."""
    files = [file for file in folder.iterdir() if CHECKPOINT_FILES.fullmatch(file.name)] if folder.is_dir() else []
    for file in sorted(files, key=lambda file: file.name != "trainer_state.json"):
        file.unlink()
    if files and not any(folder.iterdir()):
        folder.rmdir()


def _complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return (folder / FACTORS_FILE).is_file()
