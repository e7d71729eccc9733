"""What a recipe may begin at or go on from, told by the checkpoint's plan alone; and that it is so with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from lowrank_clone import CloneModel, InputError, make_plan
from lowrank_clone.recipe.method import clone_settings
from lowrank_clone.recipe.schema import MethodConfig, Switch, TapsConfig
from lowrank_clone.run.checkpoint_fit import check_beginning, check_going_on
from lowrank_clone.training import checksums
from lowrank_clone.training.checkpoint import save_clone, start_clone

TEACHER = tiny_model("starcoder2", tie_word_embeddings=False)
PLAN = make_plan(TEACHER.config, 16)


def model(method: MethodConfig) -> CloneModel:
    return CloneModel(tiny_model("starcoder2", tie_word_embeddings=False), 16, **clone_settings(PLAN, method))


def ffn(choice: Any, **options: Any) -> MethodConfig:
    return MethodConfig(parameterization={"ffn": choice}, **options)


def later(kind: str) -> Switch:
    return Switch(kind=kind, from_step=2)


DENSE = {"attention": "dense"}
# What the checkpoint's run had, what the new recipe has, and what is said of it (None where it begins).
TABLE: list[tuple[MethodConfig, MethodConfig, str | None]] = [
    (MethodConfig(), MethodConfig(), None),
    (MethodConfig(), ffn("dense"), None),
    (MethodConfig(), ffn("core"), None),
    (MethodConfig(), ffn(later("dense")), None),
    (ffn("dense"), ffn("dense"), None),
    (ffn("dense"), ffn("core"), None),
    (ffn("dense"), ffn(Switch(kind="dense", from_step=0)), None),
    (ffn("core"), ffn("core"), None),
    (ffn("core"), ffn("dense"), None),
    (ffn("dense"), MethodConfig(), "its ffn matrices are `dense`, this run's start `projected`"),
    (ffn("core"), MethodConfig(), "its ffn matrices are `core`, this run's start `projected`"),
    (ffn("dense"), ffn("projected"), "set method.parameterization.ffn to dense"),
    (ffn("dense"), ffn(later("dense")), "its ffn matrices are `dense`"),
    (ffn("dense"), ffn(later("core")), "its ffn matrices are `dense`"),
    (ffn("core"), ffn(later("core")), "its ffn matrices are `core`"),
    (MethodConfig(head_factor="embedding"), MethodConfig(), None),
    (MethodConfig(), MethodConfig(head_factor="embedding"), "set method.head_factor to own"),
    (MethodConfig(attn_out_tap="teacher"), MethodConfig(), None),
    (MethodConfig(), MethodConfig(attn_out_tap="teacher"), None),
    (MethodConfig(clone_weight=0.0), MethodConfig(), None),
    (MethodConfig(attn_out_tap="teacher"), MethodConfig(parameterization=DENSE), None),
    (
        MethodConfig(attn_out_tap="teacher", parameterization=DENSE),
        MethodConfig(parameterization=DENSE),
        "no Z for the target of the tap on",
    ),
    (
        MethodConfig(attn_out_tap="teacher", parameterization=DENSE),
        MethodConfig(parameterization=DENSE, taps=TapsConfig(off=["attn_out"])),
        None,
    ),
    (MethodConfig(baseline="scratch"), MethodConfig(), "its student is from scratch"),
]


@pytest.mark.parametrize("case", range(len(TABLE)))
def test_what_begins_at_what(case: int, tmp_path: Path) -> None:
    theirs, ours, refusal = TABLE[case]
    if theirs.baseline is None:
        save_clone(model(theirs), tmp_path)
    else:
        save_clone(CloneModel(TEACHER, 16, start="scratch", kl_weight=0.0, clone_weight=0.0), tmp_path)
    if refusal is None:
        check_beginning(PLAN, ours, tmp_path)
        start_clone(model(ours), tmp_path)
        return
    with pytest.raises(InputError, match=refusal) as caught:
        check_beginning(PLAN, ours, tmp_path)
    assert "\n" not in str(caught.value)
    assert "method.start_from" in str(caught.value) or theirs.baseline is not None
    with pytest.raises(InputError):  # the same without the early check
        start_clone(model(ours), tmp_path)


def test_a_damaged_start_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    save_clone(model(MethodConfig()), tmp_path)
    content = bytearray((tmp_path / "factors.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "factors.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"method.start_from: .*factors.safetensors is damaged"):
        check_beginning(PLAN, MethodConfig(), tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours", "refusal"),
    [
        (MethodConfig(), MethodConfig(), None),
        (MethodConfig(), ffn("dense"), None),  # switched at the next step
        (ffn("dense"), ffn(Switch(kind="dense", from_step=3)), None),
        (
            ffn("dense"),
            ffn(Switch(kind="dense", from_step=4)),
            "got projected at step 4, but the run to resume is `dense`",
        ),
        (ffn("dense"), MethodConfig(), "got projected at step 4"),
        (MethodConfig(), MethodConfig(baseline="scratch"), "its student is a clone"),
    ],
)
def test_what_goes_on(theirs: MethodConfig, ours: MethodConfig, refusal: str | None, tmp_path: Path) -> None:
    save_clone(model(theirs), tmp_path)
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 4}')
    checksums.seal(tmp_path)
    if refusal is None:
        check_going_on(PLAN, ours, tmp_path)
    else:
        with pytest.raises(InputError, match=refusal):
            check_going_on(PLAN, ours, tmp_path)


def test_a_checkpoint_without_its_optimiser_is_no_place_to_go_on(tmp_path: Path) -> None:
    save_clone(model(MethodConfig()), tmp_path)
    with pytest.raises(InputError, match=r"holds no optimizer.pt .*save_only_model"):
        check_going_on(PLAN, MethodConfig(), tmp_path)
