"""What `CloneModel` is given: a wrong kind of value or a teacher that is none is one line, never another result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import batch, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from lowrank_clone import CloneModel, InputError, Objective, make_plan, random_start

START = random_start(make_plan(tiny_config("llama"), 16), 0.2)
EMBEDDING = "model.embed_tokens.weight"

WRONG: list[tuple[str, Any]] = [
    *[("hidden_size", wrong) for wrong in ("16", 16.0, True, None, 0, 1, 24)],
    *[("taps", wrong) for wrong in ([], ["model.layers.0"], "all", True)],
    *[("start", wrong) for wrong in ("foo", "Random", "calibrated", None, 3, [1], {})],
    *[("start", {**START, EMBEDDING: wrong}) for wrong in (1, torch.zeros(3), torch.zeros(24, 16).long())],
    ("start", {**START, EMBEDDING: torch.full((24, 16), float("nan"))}),
    *[("factor_std", wrong) for wrong in ("0.1", -1, 0, None, True, float("nan"), float("inf"), 1e30)],
    *[("seed", wrong) for wrong in ("1", -1, 1.5, None, True, 2**70, 10**400)],
    *[("parameterization", wrong) for wrong in ("dense", "", ["attention"], 3, {"attention": 1}, {1: "dense"})],
    *[("objective", wrong) for wrong in ({"temperature": 1.0}, "published", Objective, Objective.published)],
    *[("head_factor", wrong) for wrong in ("foo", "Own", None, True)],
    *[("execution", wrong) for wrong in ("foo", None, "compiled")],
    *[("dtype", wrong) for wrong in ("bfloat16", 3, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)],
    *[("student", wrong) for wrong in ("x", ["rms_norm_eps"], {1: 2}, {"foo": 1})],
    *[("clone_normalization", "foo"), ("attn_out_tap", "Teacher"), ("temperature", "4")],
]


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_argument_is_one_line(name: str, wrong: Any) -> None:
    arguments = {"teacher": tiny_model("llama"), "hidden_size": 16, name: wrong}
    with pytest.raises(InputError, match=rf"^(student\.|objective\.)?{name}\b"):
        CloneModel(**arguments)


def test_groups_and_factors_given_later_are_checked_alike() -> None:
    clone = CloneModel(tiny_model("llama"), 16)
    for kinds in ("dense", None):
        with pytest.raises(InputError, match="parameterization: got"):
            clone.reparameterize(kinds)
    with pytest.raises(InputError, match=r"factor .* got a list"):
        clone.factors.load({EMBEDDING: [1.0]})
    for batches in (None, 3, batch(), {"input_ids": batch()}):
        with pytest.raises(InputError, match="accumulate: got one"):
            list(clone.accumulate(batches))


def changed(change: Callable[[Any], Any], **overrides: Any) -> PreTrainedModel:
    teacher: Any = tiny_model("llama", **overrides)
    change(teacher)
    return teacher


def without_a_layer(teacher: Any) -> None:
    del teacher.model.layers[1]


def with_an_adapter(teacher: Any) -> None:
    attention = teacher.model.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj, nn.Linear(32, 32))


def with_a_head_of_its_own(teacher: Any) -> None:
    teacher.lm_head.weight = nn.Parameter(2 * teacher.lm_head.weight.detach())


def with_a_hole(teacher: Any) -> None:
    teacher.model.layers[1].mlp.up_proj.weight.data[3, 1] = float("nan")


def without_numbers() -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config("llama"))


TEACHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "org/model", "got a str"),
    "a config": (lambda: tiny_config("llama"), "got a LlamaConfig"),
    "wrapped": (lambda: nn.DataParallel(tiny_model("llama")), "the model itself, which is inside"),
    "compiled": (lambda: torch.compile(tiny_model("llama")), "the model itself, which is inside"),
    "compiled in place": (lambda: changed(lambda teacher: teacher.compile()), "it is compiled"),
    "a base model": (lambda: tiny_model("llama").model, "the causal language model alone"),
    "a classifier": (
        lambda: AutoModelForSequenceClassification.from_config(tiny_config("llama")),
        "the causal language model alone",
    ),
    "cut": (lambda: changed(without_a_layer), r"got nothing for `model\.layers\.1\."),
    "with adapters": (lambda: changed(with_an_adapter), "merge adapters"),
    "untied beside its config": (
        lambda: changed(with_a_head_of_its_own, tie_word_embeddings=True),
        "`lm_head.weight` is a tensor of its own",
    ),
    "not finite": (lambda: changed(with_a_hole), r"`model\.layers\.1\.mlp\.up_proj\.weight` holds numbers"),
    "without numbers": (without_numbers, "on the meta device"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("kind", TEACHERS)
def test_a_teacher_that_is_none_is_one_line(kind: str) -> None:
    make, expected = TEACHERS[kind]
    with pytest.raises(InputError, match=f"^teacher.*{expected}"):
        CloneModel(make(), 16)


@pytest.mark.parametrize("change", [lambda t: t.train(), lambda t: t.requires_grad_(True), lambda t: t.half().float()])
def test_the_state_of_a_teacher_changes_nothing(change: Callable[[Any], Any]) -> None:
    plain = CloneModel(tiny_model("llama"), 16, factor_std=0.2)(batch()).loss
    other = CloneModel(changed(change), 16, factor_std=0.2)(batch()).loss
    assert torch.allclose(plain, other, rtol=1e-3)


def test_two_clones_of_one_teacher_do_not_meet() -> None:
    teacher = tiny_model("llama")
    wide, narrow = (CloneModel(teacher, width, factor_std=0.2) for width in (16, 12))
    alone = [CloneModel(tiny_model("llama"), width, factor_std=0.2)(batch()).loss.item() for width in (16, 12)]
    assert [wide(batch()).loss.item(), narrow(batch()).loss.item()] == alone
    assert wide(batch()).loss.item() == alone[0]


def test_experts_run_in_float64() -> None:
    """Their grouped products know no float64."""
    teachers = tiny_model("mixtral").double(), tiny_model("mixtral")
    wide, plain = (CloneModel(teacher, 16, factor_std=0.2)(batch()).loss for teacher in teachers)
    assert torch.allclose(wide.float(), plain, rtol=1e-4)
