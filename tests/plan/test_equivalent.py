"""Widths that a family's config refuses are deployed as the type that is the same model."""

from pathlib import Path

import pytest
import torch
from tiny import batch, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from lowrank_clone import CloneModel, InputError, make_plan
from lowrank_clone.plan.sizes import remarks

ODD = {"num_attention_heads": 3, "num_key_value_heads": 1}  # 16 channels are no multiple of 3 heads


def test_student_of_an_odd_width_is_saved_as_a_type_that_loads_with_the_same_logits(tmp_path: Path) -> None:
    clone = CloneModel(tiny_model("llama", **ODD), 16)
    assert clone.plan.student_config.model_type != "llama"
    assert clone.plan.student_config.hidden_size == 16
    assert "is the same model" in remarks(clone.plan)[0]
    clone.student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(loaded(batch()).logits, clone.student.eval()(batch()).logits)


def test_sibling_has_nothing_switched_on_that_the_teacher_has_not() -> None:
    config = make_plan(tiny_config("llama", **ODD), 16).student_config.to_dict()
    assert config.get("sliding_window") is None


def test_sibling_is_the_same_model_as_the_teacher_at_its_own_width() -> None:
    teacher = tiny_model("llama", **ODD)
    config = make_plan(teacher.config, 16).student_config.to_dict()
    config["hidden_size"] = teacher.config.hidden_size
    same = AutoModelForCausalLM.from_config(type(make_plan(teacher.config, 16).student_config).from_dict(config)).eval()
    same.load_state_dict(teacher.state_dict())
    mask = torch.ones_like(batch())
    mask[0, :4] = 0
    with torch.no_grad():
        ours, theirs = (model(input_ids=batch(), attention_mask=mask).logits for model in (same, teacher))
    torch.testing.assert_close(ours[1], theirs[1])
    torch.testing.assert_close(ours[0, 4:], theirs[0, 4:])


def test_widths_that_divide_keep_the_family() -> None:
    plan = make_plan(tiny_config("llama", **ODD), 15)
    assert plan.student_config.model_type == "llama" and remarks(plan) == []


def test_a_family_with_no_sibling_says_why() -> None:
    with pytest.raises(InputError, match="multiple of the number of attention heads"):
        make_plan(tiny_config("gemma2", num_attention_heads=3, num_key_value_heads=1), 16)
