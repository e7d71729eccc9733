"""A teacher is what its files say, or it is refused in one line before its weights are read."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import BASE, batch, tiny_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lowrank_clone import CloneModel, InputError
from lowrank_clone.plan.decoder import attention_of, decoder_config
from lowrank_clone.recipe.schema import TeacherConfig
from lowrank_clone.run.teachers import load_config, load_teacher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def put(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_codes_without_a_quantization_config_are_refused_before_weights_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    put(folder, {n: w.to(torch.float8_e4m3fn) if "proj" in n else w for n, w in weights.items()})
    with pytest.raises(InputError, match=r"is stored as F8_E4M3, .* no `quantization_config`"):
        load_config(TeacherConfig(str(folder)))


@pytest.mark.parametrize("kind", ["weight_scale", "weight_scale_inv", "input_scale", "weight_zero_point", "bias"])
def test_a_tensor_of_a_module_that_the_model_does_not_read_is_refused(folder: Path, kind: str) -> None:
    weights = load_file(folder / "model.safetensors")
    put(folder, weights | {f"model.layers.0.mlp.up_proj.{kind}": torch.ones(40)})
    with pytest.raises(InputError, match=rf"does not read, the first `model\.layers\.0\.mlp\.up_proj\.{kind}`"):
        load_teacher(TeacherConfig(str(folder)), torch.float32)


def test_layers_beyond_the_model_are_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    put(folder, weights | {"model.layers.2.mlp.up_proj.weight": torch.ones(40, 24)})
    load_teacher(TeacherConfig(str(folder)), torch.float32)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fp8", "set teacher.dequantize: true"),
        ("mxfp4", "set teacher.dequantize: true"),
        ("gptq", "transformers can't dequantise while loading"),
        ("awq", "transformers can't dequantise while loading"),
        ("bitsandbytes", "transformers can't dequantise while loading"),
    ],
)
def test_quantised_checkpoints_name_the_option_or_the_reason(folder: Path, method: str, message: str) -> None:
    rewrite(folder, quantization_config={"quant_method": method})
    with pytest.raises(InputError, match=message):
        load_config(TeacherConfig(str(folder)))


def test_block_fp8_is_dequantised_to_the_numbers_it_stands_for(folder: Path) -> None:
    weights, expected = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[name] = weight
        if "proj" in name:
            scale = weight.abs().max() / 448
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[name + "_scale_inv"] = scale.reshape(1, 1)  # one block of 128 by 128 covers it
            expected[name] = weights[name].float() * scale
    put(folder, weights)
    rewrite(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    teacher = load_teacher(TeacherConfig(str(folder), dequantize=True), torch.float32)
    for name, weight in expected.items():
        torch.testing.assert_close(teacher.get_parameter(name).data, weight, rtol=1e-2, atol=1e-3)
    assert "quantization_config" not in CloneModel(teacher, 16).student.config.to_dict()


# The sixteen numbers of four bits (OCP Microscaling Formats 1.0, E2M1): the sign is the fourth bit.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_is_dequantised_to_the_numbers_it_stands_for(tmp_path: Path) -> None:
    """gpt-oss as published: of each expert's matrix blocks of 32 numbers, two a byte, the low half first, and a power
    of two a block."""
    layout = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    tiny_model("gpt_oss", **layout).save_pretrained(tmp_path)
    generator, weights, expected = torch.Generator().manual_seed(0), {}, {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        if not name.endswith("_proj"):
            weights[name] = weight
            continue
        experts, columns, rows = weight.shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 126, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        pairs = torch.stack([E2M1[(blocks & 15).long()], E2M1[(blocks >> 4).long()]], -1).flatten(-2)
        expected[name] = (pairs * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
    assert len(expected) == 4
    put(tmp_path, weights)
    rewrite(tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    with pytest.raises(InputError, match=r"stored quantised \(mxfp4\); set teacher\.dequantize: true"):
        load_teacher(TeacherConfig(str(tmp_path)), torch.float32)
    teacher = load_teacher(TeacherConfig(str(tmp_path), dequantize=True), torch.float32)
    for name, weight in expected.items():
        assert torch.equal(teacher.get_parameter(name), weight)
    assert "quantization_config" not in CloneModel(teacher, 32).student.config.to_dict()


@pytest.mark.parametrize("damage", ["truncated", "garbled", "shard", "index"])
def test_damaged_weights_are_told_before_they_are_read(folder: Path, damage: str) -> None:
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "garbled":
        file.write_bytes(b"\xff" * 1000)
    elif damage == "shard":
        index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    else:
        index.write_text("{")
    with pytest.raises(InputError, match=r"is damaged|are missing"):
        load_config(TeacherConfig(str(folder)))


def test_a_teacher_s_own_code_is_never_run_nor_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "code.py").write_text("raise SystemExit('ran')\n")
    rewrite(folder, model_type="unheard_of", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError, match="modelling code of its own, which is never run"):
        load_config(TeacherConfig(str(folder)))


def test_sampling_without_do_sample_is_mended_before_it_stops_the_export(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6, "top_p": 0.9}))
    load_config(TeacherConfig(str(folder)))
    clone = CloneModel(load_teacher(TeacherConfig(str(folder)), torch.float32), 16)
    clone.student.save_pretrained(folder / "student")
    saved = json.loads((folder / "student" / "generation_config.json").read_text())
    assert not saved.get("do_sample") and not {"temperature", "top_p"} & saved.keys()


@pytest.mark.parametrize("text", ["{", '{"num_return_sequences": 4}'])
def test_a_generation_config_that_can_not_be_saved_is_refused(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json can't be saved with a student"):
        load_config(TeacherConfig(str(folder)))


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2", "mamba", "llama"])
def test_auto_attention_is_what_the_class_has(family: str) -> None:
    kind = CONFIG_MAPPING[family]
    config = kind(**{key: value for key, value in BASE.items() if key in kind().to_dict()})
    assert attention_of(config, "auto") == ("sdpa" if family == "llama" else "eager")
    if family != "llama":
        with pytest.raises(InputError, match=rf"attn_implementation: `{family}` can't be built with sdpa"):
            attention_of(config, "sdpa")
    with pytest.raises(InputError, match="can't be built with flash_attention_2"):
        attention_of(config, "flash_attention_2")


def test_the_text_model_of_a_multimodal_teacher_computes_what_the_teacher_does(tmp_path: Path) -> None:
    vision = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**BASE, "model_type": "mistral"}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=90)
    whole = transformers.Mistral3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(str(tmp_path)), torch.float32)
    ids = batch().clamp(max=89)
    with torch.no_grad():
        torch.testing.assert_close(teacher(ids).logits, whole(input_ids=ids).logits)
    clone = CloneModel(teacher, 16)
    clone.student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert loaded.config.model_type == "mistral"
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, clone.student.eval()(ids).logits)


SECTIONS = {"mrope_section": [1, 1, 1], "rope_theta": 1e6}
TOWER = {"depth": 1, "num_heads": 2, "patch_size": 14}


@pytest.mark.parametrize(
    ("family", "text", "tower", "expected"),
    [
        # Qwen2-VL says its sections in the older way, and no width of a head.
        ("qwen2_vl", {"rope_scaling": {"type": "mrope", **SECTIONS}}, {"embed_dim": 32, "hidden_size": 24}, "qwen2"),
        # Its router always normalises, which qwen3_moe does by a flag.
        (
            "qwen3_vl_moe",
            {"rope_parameters": {"rope_type": "default", "mrope_interleaved": True, **SECTIONS}, "num_experts": 4}
            | {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 6},
            {"hidden_size": 32, "out_hidden_size": 24, "deepstack_visual_indexes": [0]},
            "qwen3_moe",
        ),
    ],
)
def test_a_text_model_without_a_causal_class_is_taken_as_the_type_that_is_the_same_model(
    family: str, text: dict, tower: dict, expected: str, tmp_path: Path
) -> None:
    plain = {key: value for key, value in BASE.items() if key != "head_dim"}
    config = CONFIG_MAPPING[family](
        text_config={**plain, **text}, vision_config={**TOWER, **tower}, tie_word_embeddings=True, image_token_id=90
    )
    whole = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(std=0.2)
    whole.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(str(tmp_path)), torch.float32)
    assert teacher.config.model_type == expected
    assert teacher.get_input_embeddings().weight is teacher.get_output_embeddings().weight
    ids = batch(length=30).clamp(max=89)
    with torch.no_grad():
        torch.testing.assert_close(teacher(ids).logits, whole(input_ids=ids).logits)
    clone = CloneModel(teacher, 16)
    clone.student.save_pretrained(tmp_path / "student")
    saved = json.loads((tmp_path / "student" / "config.json").read_text())
    assert saved["model_type"] == expected and saved["rope_parameters"] == {"rope_theta": 1e6, "rope_type": "default"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, clone.student.eval()(ids).logits)


def test_a_text_model_that_no_causal_type_is_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"`chameleon` has no causal .* and no causal type computes what its text"):
        decoder_config(CONFIG_MAPPING["chameleon"]())


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 18), (torch.bfloat16, 20)])
def test_experts_run_at_widths_that_the_grouped_kernel_does_not_take(dtype: torch.dtype, width: int) -> None:
    teacher = tiny_model("qwen3_moe", dtype=dtype, moe_intermediate_size=24)
    clone = CloneModel(teacher, width)
    assert clone.student.config._experts_implementation == "eager"
    assert torch.isfinite(clone(batch()).loss)
