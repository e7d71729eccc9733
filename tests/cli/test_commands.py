"""The command line on a tiny teacher: the whole job, and every mistake as one line with exit code 2."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import tiny_config, tiny_model
from tiny_inputs import VOCAB, save_teacher, write_text
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, T5Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lowrank_clone.cli.main import main
from lowrank_clone.cost import estimate as cost


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_teacher(tmp_path_factory.mktemp("teacher"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def recipe(teacher: Path, text: Path, tmp_path: Path) -> Path:
    tree = {
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "student": {"hidden_size": 16, "dtype": "float32"},
        "method": {"temperature": 2.0, "clone_normalization": "target"},
        "data": {"sources": [{"path": str(text)}], "sequence_length": 32, "validation": 0.2},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 2,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def lrc(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that must fail."""
    assert lrc(*arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("lrc: error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0].removeprefix("lrc: error: ")


def test_dry_run_prints_the_plan_and_writes_nothing(recipe: Path, tmp_path: Path, capsys) -> None:
    assert lrc("train", recipe, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "24 -> 16" in shown and "attention" in shown
    assert not (tmp_path / "run").exists()


def test_train_leaves_a_student_that_plain_transformers_loads(recipe: Path, tmp_path: Path, capsys) -> None:
    assert lrc("train", recipe) == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {"student", "metrics.jsonl", "recipe.yaml", "versions.json", "curves.png", "checkpoint-4"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lm" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_lm" in line] == [0, 1, 2, 3, 4]
    assert any(key.startswith("tap/model.layers.1") for key in next(line for line in lines if "lm" in line))
    card = (run / "student" / "README.md").read_text()
    assert "license: mit" in card and "hidden_size: 16" in card and "256 tokens" in card
    assert {"chat_template.jinja", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in (run / "student").iterdir()
    }
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(run / 'student')!r}).eval()\n"
        "assert 'lowrank_clone' not in sys.modules\n"
        f"torch.save(model(torch.arange(9)[None]).logits, {str(tmp_path / 'logits.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    ours = AutoModelForCausalLM.from_pretrained(run / "student").eval()(torch.arange(9)[None]).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), ours)
    assert lrc("export", run, tmp_path / "again") == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (run / "student", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_resume_goes_on_and_overwrite_starts_anew(recipe: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert lrc("train", recipe) == 0
    whole = (run / "metrics.jsonl").read_text().splitlines()
    assert "not empty" in refused(capsys, "train", recipe)
    (run / "checkpoint-4" / "trainer_state.json").unlink()  # as if the save had been cut off
    (run / "notes.txt").write_text("mine")
    assert lrc("train", recipe, "--resume") == 0
    losses = lambda lines: [json.loads(line)["loss"] for line in lines if "lm" in json.loads(line)]  # noqa: E731
    assert losses((run / "metrics.jsonl").read_text().splitlines()) == losses(whole)
    assert lrc("train", recipe, "training.max_steps=2", "--overwrite") == 0
    assert not (run / "checkpoint-4").exists()
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("baseline", ["scratch", "logit_kd", "channels_dense"])
def test_a_baseline_is_resumed_and_exported(recipe: Path, tmp_path: Path, capsys, baseline: str) -> None:
    run = tmp_path / "run"
    assert lrc("train", recipe, f"method.baseline={baseline}") == 0
    whole = load_file(run / "student" / "model.safetensors")
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    assert lrc("train", recipe, f"method.baseline={baseline}", "--resume") == 0
    assert lrc("export", run, tmp_path / "again") == 0
    for folder in (run / "student", tmp_path / "again"):
        again = load_file(folder / "model.safetensors")
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_resume_with_another_plan_or_teacher_is_refused(recipe: Path, tmp_path: Path, teacher: Path, capsys) -> None:
    assert lrc("train", recipe) == 0
    before = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    assert "student_width is 16" in refused(capsys, "train", recipe, "student.hidden_size=8", "--resume")
    other = tmp_path / "other"
    tiny_model("llama", seed=7, vocab_size=VOCAB, pad_token_id=None).save_pretrained(other)
    tiny_tokenizer(bos=False, eos=True, chat=True).save_pretrained(other)
    message = refused(capsys, "train", recipe, f"teacher.model={other}", "--resume")
    assert "other weights" in message
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("init", ["calibrated", "channels"])
def test_a_shared_head_factor_starts_from_a_fit_that_shares_it(recipe: Path, init: str) -> None:
    from lowrank_clone.recipe.load import load_recipe
    from lowrank_clone.recipe.method import calibration_batches
    from lowrank_clone.run.build_clone import make_clone
    from lowrank_clone.run.execute import prepare_data
    from lowrank_clone.run.job import check
    from lowrank_clone.starts.calibrated import calibrated_start
    from lowrank_clone.starts.channels import channels_start

    overrides = [f"method.init={init}", "method.head_factor=embedding", "method.calibration.tokens=512"]
    job = check(load_recipe(str(recipe), overrides))
    blocks = prepare_data(job)
    clone = make_clone(job, blocks)
    batches = calibration_batches(blocks.train, job.recipe.method)
    start = calibrated_start if init == "calibrated" else channels_start
    fitted = start(clone.teacher, job.plan, batches, share_head=True)
    name = "model.embed_tokens.weight"
    assert "lm_head.weight" not in clone.factors
    torch.testing.assert_close(clone.factors[name].detach(), fitted[name])


def test_export_needs_no_text_and_names_what_is_missing(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from lowrank_clone.run import execute

    run = tmp_path / "2024"  # a name that YAML takes for a number
    assert lrc("train", recipe, f"training.output_dir='{run}'", "training.logging_steps=3") == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "prepare", lambda *_, **__: pytest.fail("text was read"))
    (run / "metrics.jsonl").unlink()
    assert lrc("export", "2024", tmp_path / "out") == 0
    assert "256 tokens" in (tmp_path / "out" / "README.md").read_text()
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    assert "let the run go on" in refused(capsys, "export", "2024", tmp_path / "new")
    assert "no recipe.yaml" in refused(capsys, "export", tmp_path / "none", tmp_path / "new")


def test_resume_without_a_run(recipe: Path, capsys) -> None:
    assert "no complete checkpoint" in refused(capsys, "train", recipe, "--resume")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.hidden_size=0", "student.hidden_size: got 0 (int)"),
        ("student.hidden_size=24", "expected less than the teacher's 24"),
        ("student.hidden_size=12.5", "student.hidden_size: got 12.5 (float), expected an integer"),
        ("student.rms_norm_epz=1e-5", "did you mean `student.rms_norm_eps`?"),
        ("student.rms_norm_eps=small", "expected a number"),
        ("method.temprature=3", "did you mean `method.temperature`?"),
        ("method.init=calibratd", "did you mean calibrated?"),
        ("method.taps.off=[gaet]", "method.taps.off: got `gaet`"),
        ("data.sequence_length=128", "at most 64 tokens"),
        ("data.sources.0.path=/nowhere/at/all.txt", "/nowhere/at/all.txt"),
        ("training.learning_rte=1", "did you mean `training.learning_rate`?"),
        ("training.bf16=true", "student.dtype"),
        ("teacher.model=./nowhere", "no config.json in `./nowhere`"),
        ("teacher.model=nowhere.gguf", "no file `nowhere.gguf`"),
        ("method.start_from=/nowhere", "method.start_from"),
        ("method.parameterization={ffn: {kind: dense, from_step: 99}}", "from_step: got 99"),
    ],
)
def test_mistakes_in_a_recipe(recipe: Path, tmp_path: Path, capsys, override: str, message: str) -> None:
    assert message in refused(capsys, "train", recipe, override)
    assert not (tmp_path / "run").exists()


def config_folder(folder: Path, config) -> Path:
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8), "encoder-decoder"),
        (lambda: CONFIG_MAPPING["bert"](), "encoder"),
        (lambda: CONFIG_MAPPING["gpt2"](n_layer=1, n_head=4), "ties an inner width to `hidden_size`"),
        (lambda: tiny_config("llama", quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
    ],
)
def test_teachers_that_cannot_be_cloned(recipe: Path, tmp_path: Path, capsys, make, message: str) -> None:
    folder = config_folder(tmp_path / "bad", make())
    if message == "quantised":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (folder / "config.json").write_text(json.dumps(config))
    assert message in refused(capsys, "train", recipe, f"teacher.model={folder}", "student.hidden_size=8")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [("recompute: some", "got 'some', expected all or elementwise"), ("every: 2", "unknown option `every`")],
)
def test_checkpointing_is_checked_before_weights_are_read(
    recipe: Path, tmp_path: Path, capsys, options: str, message: str
) -> None:
    asked = ["training.activation_checkpointing=true", f"training.activation_checkpointing_kwargs={{{options}}}"]
    assert message in refused(capsys, "train", recipe, *asked, "--dry-run")
    assert message in refused(capsys, "plan", recipe, *asked)
    assert not (tmp_path / "run").exists()


def test_the_demo_s_recipe_can_be_planned(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lowrank_clone.run.demo_teacher.teacher_file", lambda: config_folder(tmp_path / "t", tiny_config("llama"))
    )
    assert lrc("plan", "demo", "student.hidden_size=16") == 0
    assert "24 -> 16" in capsys.readouterr().out


def test_the_cost_model_follows_checkpointing(recipe: Path, capsys, monkeypatch) -> None:
    from lowrank_clone.run import estimates

    asked: list[tuple[str, int]] = []

    def estimate(plan, **options):
        asked.append((options["recompute"], options.get("every_n_layers", 1)))
        return cost.estimate(plan, **options)

    monkeypatch.setattr(estimates, "estimate", estimate)
    on = "training.activation_checkpointing=true"
    half = "training.activation_checkpointing_kwargs={every_n_layers: 2}"
    elementwise = "training.activation_checkpointing_kwargs={recompute: elementwise}"
    for overrides in ((), (on,), (on, half), (on, elementwise), (elementwise,)):
        assert lrc("train", recipe, *overrides, "--dry-run") == 0
    # The recipe's own estimate comes first, then what other settings would need.
    assert asked[::4] == [("nothing", 1), ("all", 1), ("all", 2), ("elementwise", 1), ("nothing", 1)]
    assert capsys.readouterr().out.count("Peak by training.activation_checkpointing") == 5


def test_mistakes_in_the_data(recipe: Path, tmp_path: Path, capsys) -> None:
    rows = [json.dumps({"body": "one two three " * 40, "id": i}) for i in range(6)]
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(rows))
    message = refused(capsys, "train", recipe, f"data.sources=[{{path: {good}}}]")
    assert "body" in message and "id" in message
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress("\n".join([*rows[:3], '{"body": ', *rows[3:]]).encode()))
    source = f"data.sources=[{{path: {broken}, text_column: body}}]"
    assert "broken.jsonl.gz line 4" in refused(capsys, "train", recipe, source)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "empty.txt" in refused(capsys, "train", recipe, f"data.sources=[{{path: {empty}}}]")
    assert not (tmp_path / "run").exists()


def test_text_model_of_a_multimodal_teacher(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from lowrank_clone.recipe.schema import TeacherConfig
    from lowrank_clone.run.teachers import load_teacher

    text = tiny_config("gemma3_text").to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    )
    whole.save_pretrained(tmp_path)
    model = load_teacher(TeacherConfig(model=str(tmp_path)), torch.float32)
    assert model.config.model_type == "gemma3_text"
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole.eval()(ids).logits)


def test_incomplete_weights_are_refused(recipe: Path, tmp_path: Path, teacher: Path, capsys) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "partial"
    folder.mkdir()
    for file in teacher.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(capsys, "train", recipe, f"teacher.model={folder}")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_families_of_one_type(capsys) -> None:
    assert lrc("families", "qwen3") == 0
    shown = capsys.readouterr()
    assert all(column in shown.out for column in ("plan", "padding", "calibrated", "export")) and not shown.err
    assert "no causal language model" in refused(capsys, "families", "nonsense")


def test_the_plan_of_a_dense_group_and_of_a_baseline(recipe: Path, capsys) -> None:
    assert lrc("plan", recipe, "method.parameterization={ffn: dense}") == 0
    shown = capsys.readouterr().out
    total = int(shown.split(" deployed and ")[1].split()[0].replace(",", ""))
    cells = [line.split("│") for line in shown.splitlines() if line.count("│") == 7]
    assert total == sum(int(row[5].strip().replace(",", "")) for row in cells)
    assert lrc("plan", recipe, "method.baseline=channels_dense") == 0
    shown = capsys.readouterr().out
    assert "dense" in shown and "projected" not in shown
    assert "taps, MFLOP/token" in shown and "kept by taps, GiB" in shown
    assert next(line for line in shown.splitlines() if "taps, MFLOP" in line).split("│")[2].strip() == "0.0"
