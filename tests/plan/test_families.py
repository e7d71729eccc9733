"""Families: tiny random models of each are cloned, trained, exported, reloaded and made to generate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, batch, tiny_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lowrank_clone.model import CloneModel
from lowrank_clone.plan.decoder import decoder_config
from lowrank_clone.plan.families import survey, survey_all
from lowrank_clone.plan.layouts import layout_config
from lowrank_clone.plan.tiny import tiny_config
from lowrank_clone.plan.tiny import tiny_model as own_tiny_model
from lowrank_clone.training.optim import bind

WIDTH = 16

# Their forward pass needs a longer pattern of layers than the tiny one to generate; the teacher can't either.
CAN_NOT_GENERATE = {"hrm_text", "recurrent_gemma"}


def random_model(family: str) -> PreTrainedModel:
    """A tiny random model of any family of the installed transformers, of its published layout where one is listed."""
    return own_tiny_model(tiny_config(decoder_config(layout_config(family))))


def train(clone: CloneModel, steps: int, ids: torch.Tensor) -> list[float]:
    """Losses of a few steps on one batch."""
    clone.train()
    optimizer = bind(torch.optim.AdamW(clone.factors.parameters(), lr=3e-3), clone.factors, max_grad_norm=1.0)
    losses = []
    for _ in range(steps):
        loss = clone(ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    clone.eval()
    return losses


def reloaded(clone: CloneModel, folder: Path) -> PreTrainedModel:
    """The student as a reader of its saved checkpoint gets it; nothing is missing, unexpected or of another shape."""
    clone.student.save_pretrained(folder)
    student, report = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=clone.student.dtype, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return student.eval()


def assert_a_full_round(teacher: PreTrainedModel, folder: Path, generate: bool = True) -> None:
    """Clone, train, compare the loss with the logits', export, reload, generate."""
    clone, ids = CloneModel(teacher, WIDTH, factor_std=0.1), batch()
    start = clone.student(ids, use_cache=False).logits
    losses = train(clone, 5, ids)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        logits = clone.student(ids, use_cache=False).logits
        lm = clone(ids).lm
    assert not torch.equal(logits, start)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    assert float(lm) == pytest.approx(float(expected), rel=1e-5)
    student = reloaded(clone, folder)
    assert type(student) is type(clone.student) and student.config.hidden_size == WIDTH
    with torch.no_grad():
        assert torch.equal(student(ids, use_cache=False).logits, logits)
    if generate:
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        ours, theirs = (model.generate(ids[:1, :5], **options) for model in (clone.student, student))
        assert ours.shape == (1, 9) and torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_listed_families(family: str, tmp_path: Path) -> None:
    assert_a_full_round(tiny_model(family), tmp_path)


UNLISTED = [
    "cohere2",
    "dots1",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "falcon_h1",
    "gemma4_text",
    "glm4",
    "glm4_moe",
    "granitemoe",
    "hunyuan_v1_dense",
    "llama4_text",
    "longcat_flash",
    "mamba",
    "ministral",
    "nemotron",
    "nemotron_h",
    "olmo",
    "olmo3",
    "phi",
    "phimoe",
    "qwen2_moe",
    "qwen3_next",
    "seed_oss",
    "smollm3",
]


@pytest.mark.parametrize("family", UNLISTED)
def test_families_that_nobody_listed(family: str, tmp_path: Path) -> None:
    assert_a_full_round(random_model(family), tmp_path)


@pytest.mark.parametrize("family", ["lfm2", "lfm2_moe"])
def test_a_type_is_judged_by_its_published_layout(family: str) -> None:
    found = survey(family)  # the default config has attention layers only
    assert not found.supported and "convolves the residual stream" in found.reason
    assert found.layout.startswith("LiquidAI/")


@pytest.mark.slow
def test_every_family_that_plans_also_trains_exports_and_reloads(tmp_path: Path) -> None:
    failures = {}
    families = [family.model_type for family in survey_all() if family.supported]
    for family in families:
        try:
            assert_a_full_round(random_model(family), tmp_path / family, family not in CAN_NOT_GENERATE)
        except Exception as error:  # collected, so that one report names them all
            failures[family] = f"{type(error).__name__}: {error}"
    assert len(families) >= 85 and failures == {}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_bfloat16_student_is_exported_as_it_is(family: str, tmp_path: Path) -> None:
    clone = CloneModel(tiny_model(family, dtype=torch.bfloat16), WIDTH, factor_std=0.1)
    train(clone, 2, batch())
    student = reloaded(clone, tmp_path)
    assert student.dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(student(batch()).logits, clone.student(batch()).logits)


@pytest.mark.parametrize("family", [*FAMILIES, "nemotron_h", "deepseek_v3", "qwen3_next"])
def test_the_config_survives_the_round_trip(family: str, tmp_path: Path) -> None:
    teacher = tiny_model(family) if family in FAMILIES else random_model(family)
    field = "layer_norm_eps" if "layer_norm_eps" in teacher.config.to_dict() else "rms_norm_eps"
    field = field if field in teacher.config.to_dict() else next(k for k in teacher.config.to_dict() if "eps" in k)
    clone = CloneModel(teacher, WIDTH, student={field: 0.0625})
    clone.student.save_pretrained(tmp_path)
    read, ours = AutoConfig.from_pretrained(tmp_path).to_dict(), clone.student.config.to_dict()
    different = {key for key in read.keys() | ours.keys() if read.get(key) != ours.get(key)}
    assert different <= {"_name_or_path", "transformers_version", "architectures"}
    assert read[field] == 0.0625
    teachers = teacher.config.to_dict()
    changed = {key for key in read if read[key] != teachers.get(key)}
    assert changed - {"_name_or_path", "transformers_version", "architectures", "dtype"} <= {
        "hidden_size",
        "head_dim",
        field,
    }


def test_an_untied_student_of_a_tied_teacher_keeps_its_own_head(tmp_path: Path) -> None:
    teacher = tiny_model("llama", tie_word_embeddings=True)
    clone = CloneModel(teacher, WIDTH, student={"tie_word_embeddings": False}, factor_std=0.1)
    train(clone, 2, batch())
    student = reloaded(clone, tmp_path)
    assert not torch.equal(student.lm_head.weight, student.model.embed_tokens.weight)
    assert torch.equal(student(batch()).logits, clone.student(batch()).logits)


def test_a_teacher_s_generation_config_goes_with_the_student(tmp_path: Path) -> None:
    teacher = tiny_model("llama")
    teacher.generation_config.top_k = 7
    teacher.generation_config.do_sample = True
    student = reloaded(CloneModel(teacher, WIDTH), tmp_path)
    assert student.generation_config.top_k == 7 and student.generation_config.do_sample
