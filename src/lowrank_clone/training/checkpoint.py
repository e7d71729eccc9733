"""What a checkpoint holds and what it is checked for: the factors of one plan and one teacher, never the teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..factors.parameterize import check_kinds, check_start
from ..factors.transfer import expected_links, sources, transfer
from ..model import CloneModel
from ..plan.roles import Plan
from .checksums import damage, seal
from .digest import digest_of
from .last_checkpoint import STATE_FILE
from .last_checkpoint import last_checkpoint as last_checkpoint  # beside what saves and loads one
from .plan_file import FACTORS_FILE, FORMAT, PLAN_FILE, Stored, read_stored

# What a run needs beside the clone to go on as if it had not stopped.
TRAINER_FILES = ("optimizer.pt", "scheduler.pt", STATE_FILE)
# What torch and Trainer raise at a file that is none of theirs, or another run's.
READ_ERRORS = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, UnpicklingError)


def save_clone(clone: CloneModel, folder: Path) -> None:
    """Write what training changes: the factors and the taps' running mean squares, and the plan they belong to."""
    write_clone(clone, folder)
    seal(folder)


def write_clone(clone: CloneModel, folder: Path, factors: Mapping[str, Tensor] | None = None) -> None:
    """`save_clone` without the manifest, for a checkpoint that is not complete with it.

    Args:
        factors: The factors as a whole, where the clone holds parts of them only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = clone.factors.state_dict() if factors is None else factors
    tensors = {f"factor:{name}": value for name, value in factors.items()}
    if clone.target_squares is not None:
        tensors |= {f"target_squares:{name}": value for name, value in clone.target_squares.state_dict().items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / FACTORS_FILE)
    respect_umask([folder / FACTORS_FILE])
    stored = Stored(
        format=FORMAT,
        **fingerprint(clone.plan),
        teacher=digest_of(clone.teacher),
        scratch=clone.scratch,
        kinds=clone.kinds,
        links={link.name: link.factor for link in clone.factors.links},
        taps=[tap.name for tap in clone.taps],
        normalization=clone.objective.clone_normalization,
        tensors=sorted(tensors),
    )
    (folder / PLAN_FILE).write_text(json.dumps(asdict(stored)), encoding="utf-8")


def respect_umask(files: Iterable[Path]) -> None:
    """Let files be read by whom the umask lets read; safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def load_clone(clone: CloneModel, folder: Path) -> None:
    """Go on from what `save_clone` wrote: the factors and the taps' running means.

    Groups that are dense or core there become so here; a group that is so here only is generated from their factors.

    Raises:
        InputError: `folder` is no such checkpoint, is damaged, belongs to another plan or teacher, or lacks a factor.
    """
    stored, tensors = _read(folder), _tensors(folder)
    squares = {name: value for kind, name, value in tensors if kind == "target_squares"}
    if clone.target_squares is not None:
        ours = [tap.name for tap in clone.taps]
        if stored.normalization != "target" or stored.taps != ours:
            which = "taps" if stored.normalization == "target" else "clone_normalization"
            raise InputError(
                f"{folder}: it has no running mean squares of these taps' targets, as its run had another "
                f"method.{which}; go on with the same one, or begin a new run from it (method.start_from)"
            )
        shapes = {"mean": (count := len(clone.target_squares.names),), "sum": (count + 1,)}
        for name, value in squares.items():
            if tuple(value.shape) != shapes.get(name) or not value.isfinite().all():
                raise InputError(f"{folder}: its running mean squares (`{name}`) are damaged; use another checkpoint")
    _load_factors(clone, folder, stored, tensors)
    if clone.target_squares is not None:
        clone.target_squares.load_state_dict(squares, clone.student.device)


def start_clone(clone: CloneModel, folder: Path) -> None:
    """Begin a new run at the factors that `save_clone` wrote (`method.start_from`); what divides taps starts anew.

    Raises:
        InputError: As `load_clone`; or a group is dense or core there and projected here.
    """
    stored = _read(folder)
    check_start(stored.kinds, clone.kinds, f"method.start_from: {folder}")
    _load_factors(clone, folder, stored, _tensors(folder))


def resume_clone(clone: CloneModel, folder: Path) -> None:
    """`load_clone` for a run that goes on with the optimiser that was saved beside the clone.

    Raises:
        InputError: As `load_clone`; or the optimiser is not there, or belongs to other factors.
    """
    stored = _read(folder)
    check_resumable(folder)
    load_clone(clone, folder)
    if clone.kinds != stored.kinds or set(clone.factors) != set(stored.links.values()):
        raise InputError(
            f"{folder}: its optimiser belongs to other factors (method.parameterization, taps, attn_out_tap or "
            "head_factor differ from that run's); resume with the same method, or begin a new run from it "
            "(method.start_from)"
        )


def _load_factors(clone: CloneModel, folder: Path, stored: Stored, tensors: list[tuple[str, str, Tensor]]) -> None:
    check_plan(clone.plan, folder, scratch=clone.scratch)
    if stored.teacher != digest_of(clone.teacher):
        raise InputError(f"{folder}: its teacher has the same shapes but other weights; expected the same teacher")
    values = {name: value for kind, name, value in tensors if kind == "factor"}
    _check_values(folder, values, next(clone.factors.parameters()).dtype)
    kinds = {group: stored.kinds[group] if kind == "projected" else kind for group, kind in clone.kinds.items()}
    ours = {link.name: link.factor for link in clone.factors.links}
    if kinds != clone.kinds:  # what they will be, so that a refusal leaves the clone as it is
        heads = {role.name for role in clone.plan.roles.values() if role.group == "head"}
        share_head = any(ours[name] != name for name in heads & set(ours))
        ours = expected_links(clone.plan, kinds, share_head, [name for name, _ in clone.targets.items()])
    found = sources(clone.plan, stored.links, stored.kinds, ours, str(folder))
    clone.reparameterize(kinds)
    teacher = dict(clone.teacher.named_parameters(remove_duplicate=False))
    clone.factors.load(transfer(clone.factors, clone.plan, teacher, clone.kinds, stored.kinds, found, values))


def _check_values(folder: Path, values: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in values.items():
        if value.dtype not in (torch.float32, dtype):
            raise InputError(f"{folder}: factor `{name}` is stored as {value.dtype}, expected {dtype} or torch.float32")
        if not value.isfinite().all():
            raise InputError(f"{folder}: factor `{name}` holds numbers that are not finite; use an earlier checkpoint")


def check_plan(plan: Plan, folder: Path, *, scratch: bool = False) -> None:
    """Refuse a checkpoint of another architecture, width or parameter; needs no weights.

    Args:
        scratch: Whether this run's student hangs on no teacher.

    Raises:
        InputError: What differs first.
    """
    theirs, ours = asdict(read_stored(folder)), fingerprint(plan)
    for key in ("model_type", "teacher_width", "student_width"):
        if theirs[key] != ours[key]:
            raise InputError(f"{folder}: its {key} is {theirs[key]}, this run's is {ours[key]}; expected the same plan")
    for name in sorted(set(theirs["roles"]) | set(ours["roles"])):
        if theirs["roles"].get(name) != ours["roles"].get(name):
            raise InputError(f"{folder}: its parameter `{name}` differs from this run's; expected the same teacher")
    if set(theirs["kinds"]) != (groups := set(check_kinds(plan, {}))):
        raise InputError(
            f"{folder}: its groups are {', '.join(theirs['kinds'])}, this run's {', '.join(sorted(groups))}"
        )
    if theirs["scratch"] != scratch:
        kinds = {True: "from scratch (method.baseline)", False: "a clone"}
        raise InputError(f"{folder}: its student is {kinds[theirs['scratch']]}, this run's is {kinds[scratch]}")


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What must be equal for a checkpoint of one run to be loaded into another."""
    return {
        "model_type": plan.teacher_config.model_type,
        "teacher_width": plan.teacher_width,
        "student_width": plan.student_width,
        "roles": {name: [role.kind, *role.student_shape] for name, role in plan.roles.items()},
    }


def check_resumable(folder: Path) -> None:
    """Refuse a checkpoint that holds no optimiser to go on with, or does not say at which step it was.

    Raises:
        InputError: A file of the trainer's is missing, or its state is damaged.
    """
    for name in TRAINER_FILES:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: it holds no {name} (training.save_only_model leaves it out), so its run can't go on; begin "
                "a new run from it (method.start_from)"
            )
    try:
        step = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}: {STATE_FILE} is damaged; use another checkpoint") from error
    if not isinstance(step, int):
        raise InputError(f"{folder}: {STATE_FILE} is damaged: its global_step is {step!r}; use another checkpoint")


def _read(folder: Path) -> Stored:
    stored = read_stored(folder)
    wrong = damage(folder)
    if wrong is not None:
        raise InputError(f"{folder}: {wrong}; use another checkpoint")
    return stored


def _tensors(folder: Path) -> list[tuple[str, str, Tensor]]:
    """Kind, name and value of each tensor of a checkpoint."""
    try:
        tensors = load_file(folder / FACTORS_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: {FACTORS_FILE} is damaged: {' '.join(str(error).split())}") from error
    expected = set(read_stored(folder).tensors)
    for name in sorted(expected ^ set(tensors)):
        what = "lacks" if name in expected else "holds, beyond what its plan lists,"
        raise InputError(f"{folder}: {FACTORS_FILE} {what} `{name}`; use another checkpoint")
    return [(*key.split(":", 1), value) for key, value in tensors.items()]  # type: ignore[misc]


@contextmanager
def readable(folder: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong while Trainer reads its own files of a checkpoint into one line.

    Raises:
        InputError: It names the folder and the reason.
    """
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: the optimiser, its schedule or the random state there can't be gone on with: {reason}"
        ) from error
