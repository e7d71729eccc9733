"""Widths that a family's config refuses are deployed as the type that is the same model."""

import copy
from pathlib import Path

import pytest
import torch
from tiny import batch, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from lowrank_clone import CloneModel, InputError, make_plan
from lowrank_clone.plan.equivalent import equivalents
from lowrank_clone.plan.sizes import remarks
from lowrank_clone.starts.channels import channels_start

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


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def test_nested_rope_parameters_are_not_shared_with_the_types_that_are_tried() -> None:
    """Llama-3.2-3B: a config class that writes into `rope_parameters` must not change what the next one is given."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    teacher = tiny_config("llama", **ODD, rope_parameters=rope)
    before = copy.deepcopy(teacher.to_dict())
    plan = make_plan(teacher, 16)
    assert plan.student_config.model_type == "mistral"
    assert plan.student_config.rope_parameters == rope
    assert teacher.to_dict() == before


@pytest.mark.parametrize(("partial", "factors"), [(1.0, [1.0, 1.5, 2.0, 3.0]), (0.75, [1.0, 1.5, 2.0])])
def test_longrope_of_phi3_is_cloned_as_a_type_that_stores_its_fused_matrices_in_pieces(
    partial: float, factors: list[float], tmp_path: Path
) -> None:
    """Phi-3.5-mini, Phi-4-mini: their config class wants as many factors as a head of `hidden_size / heads` has pairs.
    Rows of 40 tokens are beyond the 32 after which the long factors hold."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    rope |= {"partial_rotary_factor": partial, "short_factor": factors, "long_factor": [2 * f for f in factors]}
    teacher = tiny_model("phi3", hidden_size=32, rope_parameters=rope, original_max_position_embeddings=32)
    clone, ids = CloneModel(teacher, 20), batch(length=40)
    assert clone.plan.teacher_config.model_type == clone.plan.student_config.model_type != "phi3"
    fused = teacher.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    assert clone.teacher.get_parameter("model.layers.0.self_attn.q_proj.weight").data_ptr() == fused.data_ptr()
    clone.student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(clone.teacher(ids).logits, teacher(ids).logits)
        torch.testing.assert_close(loaded(ids).logits, clone.student.eval()(ids).logits)
    start = channels_start(teacher, clone.plan, [batch(rows=8)])  # a start takes the teacher as it came
    CloneModel(teacher, 20, start=start)


def test_a_window_longer_than_the_test_s_rows_is_seen() -> None:
    """Two types that differ only beyond a window of 4,000 tokens are not the same model."""
    fields = tiny_config("phi3", sliding_window=4000).to_dict() | {"head_dim": 6}
    found = {e.config_class.model_type: e for e in equivalents(type(tiny_config("phi3")), fields)}
    assert "llama" not in found
    assert found["mistral"].config(fields).sliding_window == 4000


def test_widths_that_divide_keep_the_family() -> None:
    plan = make_plan(tiny_config("llama", **ODD), 15)
    assert plan.student_config.model_type == "llama" and remarks(plan) == []


def test_a_family_with_no_sibling_says_why() -> None:
    with pytest.raises(InputError, match="multiple of the number of attention heads"):
        make_plan(tiny_config("gemma2", num_attention_heads=3, num_key_value_heads=1), 16)
