"""What is saved of a student computes the same in transformers 4: the fields that it reads, and a run of it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowrank_clone
from lowrank_clone import CloneModel
from lowrank_clone.training.readers import save_for_readers

THETA = {"rope_theta": 1e5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0]}
LONG |= {"original_max_position_embeddings": 32}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}


def rope(**fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", **THETA, **fields}}


def two_ropes(full: dict[str, Any], local: float) -> dict[str, Any]:
    sliding = {"rope_type": "default", "rope_theta": local}
    return {**WINDOWED, "rope_parameters": {"full_attention": {**THETA, **full}, "sliding_attention": sliding}}


PHI3 = {"hidden_size": 32, "original_max_position_embeddings": 32}
# The family, its fields, and what transformers 4 is to find in config.json.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", rope(), THETA),
    "llama of another name": ("llama", {**rope(), "num_attention_heads": 3, "num_key_value_heads": 1}, THETA),
    "llama3": ("llama", rope(**LLAMA3), {**THETA, "rope_scaling": LLAMA3}),
    "linear": ("llama", rope(**LINEAR), {**THETA, "rope_scaling": LINEAR}),
    "yarn": ("llama", rope(**YARN), {**THETA, "rope_scaling": YARN}),
    "mistral": ("mistral", rope(), THETA),
    "qwen2": ("qwen2", rope(), THETA),
    "qwen3": ("qwen3", rope(), THETA),
    "qwen3_moe": ("qwen3_moe", rope(), {**THETA, "num_experts": 4}),
    "gemma2": ("gemma2", rope(), THETA),
    "gemma3_text": (
        "gemma3_text",
        two_ropes(LINEAR, 2e4),
        {**THETA, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR},
    ),
    "olmo2": ("olmo2", rope(), THETA),
    "olmo3": ("olmo3", two_ropes(YARN, 1e5), {**THETA, "rope_scaling": YARN}),
    "phi3": ("phi3", rope(partial_rotary_factor=0.5), {**THETA, "partial_rotary_factor": 0.5}),
    "phi3 longrope": (
        "phi3",
        {**PHI3, **rope(**{**LONG, "partial_rotary_factor": 0.75})},
        {**THETA, "rope_scaling": LONG},
    ),
}


def student_of(name: str) -> CloneModel:
    family, fields, _ = CASES[name]
    return CloneModel(tiny_model(family, vocab_size=264, **fields), 16, factor_std=0.2)


@pytest.mark.parametrize("name", [name for name in CASES if name != "phi3 longrope"])
def test_config_says_all_in_the_older_fields_too(name: str, tmp_path: Path) -> None:
    clone = student_of(name)
    save_for_readers(clone.student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for field, value in {**CASES[name][2], "torch_dtype": "float32", "dtype": "float32"}.items():
        assert config[field] == value
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(loaded(batch(length=40)).logits, clone.student.eval()(batch(length=40)).logits)


def test_what_trainer_changed_is_the_teacher_s_again(tmp_path: Path) -> None:
    clone = student_of("llama")
    clone.student.config.use_cache = False
    clone.student.config.eos_token_id = 7
    save_for_readers(clone.student, tmp_path, None, clone.teacher.config)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["use_cache"], config["eos_token_id"]) == (True, 2)
    assert "_name_or_path" not in config and "_model_name_or_path" not in config


def test_tokenizer_goes_by_a_class_and_fields_that_both_versions_have(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    save_for_readers(student_of("llama").student, tmp_path, tokenizer)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["additional_special_tokens"] == ["<x>"] and "extra_special_tokens" not in fields
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a<x></s>").input_ids == tokenizer("a<x></s>").input_ids
    assert again.all_special_tokens == tokenizer.all_special_tokens and again.chat_template == tokenizer.chat_template


READ = """
import sys, torch, transformers
from pathlib import Path
assert transformers.__version__ < "5"
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["ids"]).logits, expected["logits"], rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a</s>").input_ids == expected["tokens"], folder
"""


@pytest.mark.skipif("LRC_TRANSFORMERS_4" not in os.environ, reason="LRC_TRANSFORMERS_4 names no interpreter with it")
def test_transformers_4_computes_the_same_logits(tmp_path: Path) -> None:
    """Set LRC_TRANSFORMERS_4 to a Python interpreter that has transformers 4.57 and this PyTorch."""
    for name in CASES:
        clone, tokenizer = student_of(name), tiny_tokenizer(chat=True)
        save_for_readers(clone.student, tmp_path / name, tokenizer, clone.teacher.config)
        with torch.no_grad():
            logits = clone.student.eval()(batch(length=40)).logits
        expected = {"ids": batch(length=40), "logits": logits, "tokens": tokenizer("a</s>").input_ids}
        torch.save(expected, tmp_path / name / "expected.pt")
    done = subprocess.run(
        [os.environ["LRC_TRANSFORMERS_4"], "-c", READ, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_public_function_says_the_rotary_base_in_both_ways(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    lowrank_clone.save_for_readers(CloneModel(tiny_model("llama", rope_parameters=rope), 16).student, str(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 5e5
