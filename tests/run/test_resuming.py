"""What a run records, and what a resumed one may change."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import contents, lrc, refused
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lowrank_clone import load_run
from lowrank_clone.errors import InputError
from lowrank_clone.objective.evaluate import language_loss
from lowrank_clone.recipe.fields import training_fields
from lowrank_clone.recipe.load import dump_recipe, load_recipe
from lowrank_clone.recipe.schema import SECTIONS
from lowrank_clone.run.execute import prepare_data
from lowrank_clone.run.job import check, make_arguments, plan_of
from lowrank_clone.run.redaction import without_secrets
from lowrank_clone.run.resolve import resolved
from lowrank_clone.run.results import read_results
from lowrank_clone.run.resume import RULES
from lowrank_clone.run.saved import job_of, open_run


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def student_losses(run: Path) -> dict[int, float]:
    results = read_results(run)
    assert results is not None
    return results.student


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_losses_are_recorded_and_are_those_of_the_models(recipe: Path, run: Path) -> None:
    blocks = prepare_data(job_of(open_run(run))).validation
    clone = load_run(run)
    results = read_results(run)
    assert results is not None and results.teacher is not None
    assert results.teacher.loss == pytest.approx(language_loss(clone.teacher, blocks).loss, rel=1e-6)
    assert results.student.keys() == {0, 2}
    assert results.student[2] == pytest.approx(language_loss(clone.student, blocks).loss, rel=1e-6)
    lines = {line["step"]: line["eval_lm"] for line in metrics(run) if "eval_lm" in line}
    assert lines == results.student


def test_nothing_is_evaluated_twice(recipe: Path, tmp_path: Path) -> None:
    options = ("training.max_steps=4", "training.eval_strategy=steps", "training.eval_steps=2")
    assert lrc("train", recipe, *options) == 0
    assert lrc("train", recipe, *options, "training.max_steps=5", "--resume") == 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "eval_lm" in line] == [0, 2, 4, 5]


@pytest.mark.parametrize("evaluations", ["no", "steps"])
def test_a_resumed_run_tells_the_start_that_was(
    recipe: Path, tmp_path: Path, evaluations: str, capsys, monkeypatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = ("training.max_steps=4", f"training.eval_strategy={evaluations}")
    assert lrc("train", recipe, *options, f"training.output_dir={whole}") == 0
    assert lrc("train", recipe, *options) == 0
    shutil.rmtree(run / "checkpoint-4")
    capsys.readouterr()
    monkeypatch.setattr("lowrank_clone.run.execute.language_loss", lambda *_: pytest.fail("measured again"))
    assert lrc("train", recipe, *options, "--resume") == 0
    assert student_losses(run) == student_losses(whole)
    start = student_losses(whole)[0]
    assert f"Validation loss {start:.4f} -> {student_losses(whole)[4]:.4f}" in capsys.readouterr().out
    table = (run / "student" / "README.md").read_text().split("## Recipe")[0].splitlines()
    assert f"| student before training | {start:.4f} |" in table
    for name in ("README.md", "config.json", "model.safetensors"):
        if name != "README.md":
            assert (run / "student" / name).read_bytes() == (whole / "student" / name).read_bytes()


def test_the_recipe_of_a_run_is_resolved(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    auto = ("teacher.dtype=auto", "student.dtype=auto", "training.max_steps=-1", "training.total_tokens=100")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert lrc("train", recipe, *auto, "method.init=calibrated", "method.calibration.tokens=128") == 0
    written = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (written.teacher.dtype, written.student.dtype) == ("bfloat16", "bfloat16")
    arguments = written.training.arguments
    assert written.training.total_tokens is None and arguments["max_steps"] == 2  # 64 tokens a step
    assert arguments["muon"] is True and arguments["seed"] == 42 and arguments["output_dir"] == str(tmp_path / "run")
    assert written.teacher.attn_implementation == "sdpa"
    assert resolved(written, make_arguments(written), plan_of(written).teacher_config) == written
    # On another machine the same dtype is exported and resumed.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert lrc("export", tmp_path / "run", tmp_path / "out") == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run/student", "out"))
    assert all(first[name].dtype == torch.bfloat16 and first[name].equal(second[name]) for name in first)
    options = (*auto, "method.init=calibrated", "method.calibration.tokens=128", "training.total_tokens=150")
    assert check(load_recipe(str(recipe), options), resume=True).recipe.student.dtype == "bfloat16"


def test_export_needs_the_teacher_alone(recipe: Path, run: Path, tmp_path: Path, text: Path, monkeypatch) -> None:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["data"]["sources"][0]["path"] = "/gone"
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    before = contents(run)
    assert lrc("export", run, tmp_path / "out") == 0
    first, second = contents(run / "student"), contents(tmp_path / "out")
    first.pop("README.md"), second.pop("README.md")
    assert first == second and contents(run) == before
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| student after 2 steps | {student_losses(run)[2]:.4f} |" in card and "| teacher |" in card


def test_a_card_without_losses_says_so(run: Path, tmp_path: Path) -> None:
    (run / "results.json").unlink()
    assert lrc("export", run, tmp_path / "out") == 0
    assert "recorded no losses" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("place", ["full", "file", "run", "inside"])
def test_where_an_export_may_not_go(run: Path, tmp_path: Path, place: str, capsys) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    output = {"full": full, "file": file, "run": run, "inside": run / "export"}[place]
    before = contents(tmp_path)
    assert str(output) in refused(capsys, "export", run, output)
    assert contents(tmp_path) == before


def test_an_export_that_fails_leaves_nothing(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowrank_clone.run.export.respect_umask", full)
    before = contents(tmp_path)
    assert "No space left on device" in refused(capsys, "export", run, tmp_path / "out")
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_recipe_is_written_without_its_secrets(recipe: Path) -> None:
    given = {
        "training.run_name": "with-plain-text-secret",
        "training.lr_scheduler_kwargs": "{token: plain-text-secret, api_key: another-secret, steps: 3}",
        "teacher.revision": "hf_madeUpForThisTest0000",
        "data.sources.0.path": "https://me:my-password@example.org/a.jsonl",
    }
    written = without_secrets(load_recipe(str(recipe), [f"{key}={value}" for key, value in given.items()]))
    text = dump_recipe(written)
    for secret in ("plain-text-secret", "another-secret", "hf_", "my-password"):
        assert secret not in text
    assert written.training.arguments["lr_scheduler_kwargs"] == {"steps": 3}
    assert (written.training.arguments["run_name"], written.teacher.revision) == ("with-(hidden)", "(hidden)")
    assert written.data.sources[0].path == "https://example.org/a.jsonl"
    kept = load_recipe(str(recipe), ["training.seed=3", "method.calibration.tokens=5"])  # no secret has this name
    assert without_secrets(kept) == kept


def test_no_file_of_a_run_holds_a_secret_or_a_card_a_path(
    recipe: Path, tmp_path: Path, teacher: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ofTheEnvironment000000")
    message = refused(capsys, "train", recipe, "training.hub_token=hf_madeUpForThisTest0000")
    assert "training.hub_token" in message and "madeUp" not in message
    assert lrc("train", recipe, "training.run_name=of-hf_anotherOneOfThese00") == 0
    assert lrc("export", tmp_path / "run", tmp_path / "out") == 0
    for file in [*(tmp_path / "run").rglob("*"), *(tmp_path / "out").rglob("*")]:
        data = file.read_bytes() if file.is_file() else b""
        assert not any(secret in data for secret in (b"hf_", b"anotherOne", b"ofTheEnvironment"))
        if {"student", "out"} & set(file.parts):
            assert str(tmp_path).encode() not in data and str(teacher).encode() not in data
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).training.arguments["run_name"] == "of-(hidden)"


def test_files_are_as_the_umask_says_and_the_config_is_the_teacher_s(run: Path, teacher: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert set(modes.values()) == {(run / "metrics.jsonl").stat().st_mode & 0o777} and len(modes) > 12
    theirs = json.loads((teacher / "config.json").read_text())
    ours = json.loads((run / "student" / "config.json").read_text())
    assert {key for key in theirs if theirs[key] != ours.get(key)} == {"hidden_size"}
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    assert student(torch.arange(3)[None]).past_key_values is not None


def test_damaged_metrics_stop_nothing(recipe: Path, run: Path, tmp_path: Path, caplog) -> None:
    good = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(good + b'\xff\xfe\n{"loss": 1}\n{"step": 2, "lm')
    assert lrc("inspect", run, "--tokens", "32", "--no-html") == 0
    assert lrc("export", run, tmp_path / "out") == 0
    assert caplog.text.count("left out damaged lines") == 2
    assert lrc("train", recipe, "training.max_steps=3", "--resume") == 0
    assert (run / "metrics.jsonl").read_bytes().startswith(good)
    assert [line["step"] for line in metrics(run) if "lm" in line] == [1, 2, 3]


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_run_with_relative_paths_is_known_from_everywhere(
    recipe: Path, teacher: Path, text: Path, tmp_path: Path, monkeypatch
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    shutil.copytree(teacher, here / "teacher")
    shutil.copytree(text, here / "texts" / "train")
    (here / "texts" / "held").mkdir()
    for i in range(5):
        (here / "texts" / "held" / f"{i}.txt").write_text(f"Held out text number {i}. " * 30)
    other.mkdir()
    monkeypatch.chdir(here)
    held = f"data.validation=[{{path: {Path('texts') / 'held'}}}]"
    relative = ("teacher.model=teacher", "data.sources.0.path=texts/train/*.txt", held, "training.output_dir=runs/a")
    assert lrc("train", recipe, *relative) == 0
    run = here / "runs" / "a"
    monkeypatch.chdir(other)
    assert lrc("export", run, "student") == 0 and lrc("inspect", run, "--no-html") == 0
    assert lrc("train", run / "recipe.yaml", "--resume", "training.max_steps=3") == 0
    assert (run / "checkpoint-3").is_dir() and [path.name for path in other.iterdir()] == ["student"]
    card = (run / "student" / "README.md").read_text()
    assert str(tmp_path) not in card and "model: teacher" in card


@pytest.mark.parametrize("damage", ["[" * 5000, '{"resumed": 3}', '{"resumed": null}', "[]", "\0"])
def test_a_damaged_versions_json_stops_nothing(recipe: Path, run: Path, damage: str) -> None:
    (run / "versions.json").write_text(damage)
    assert lrc("train", recipe, "--resume", "training.max_steps=3") == 0
    assert json.loads((run / "versions.json").read_text())
    assert (run / "versions.json.changed").read_text() == damage


def test_resuming_a_finished_run_does_nothing_and_says_so(recipe: Path, run: Path, capsys) -> None:
    before = contents(run)
    assert lrc("train", recipe, "--resume") == 0
    assert "is finished: it is at step 2 of 2" in capsys.readouterr().out
    assert lrc("train", recipe, "--resume", "training.max_steps=1") == 0
    assert contents(run) == before


def test_a_run_that_ended_before_its_export_is_completed(recipe: Path, run: Path) -> None:
    """And not trained one step further."""
    before = contents(run)
    shutil.rmtree(run / "student")
    assert lrc("train", recipe, "--resume") == 0
    after = contents(run)
    rewritten = {"manifest.json", "versions.json", "curves.png", "recipe.yaml", "report.html"}
    assert {name: digest for name, digest in after.items() if name not in rewritten} == {
        name: digest for name, digest in before.items() if name not in rewritten
    }
    assert len(json.loads((run / "versions.json").read_text())["resumed"]) == 1


def test_a_longer_run_follows_the_longer_schedule(recipe: Path, tmp_path: Path) -> None:
    """Not the rate 0 with which the shorter one ended: 1e-3 falls linearly to 0 over six steps."""
    options = ("training.lr_scheduler_type=linear", "training.warmup_steps=0")
    assert lrc("train", recipe, *options, "training.max_steps=3") == 0
    assert lrc("train", recipe, *options, "training.max_steps=6", "--resume") == 0
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run") if "lm" in line]
    expected = [1e-3 * (3 - step) / 3 for step in range(3)] + [1e-3 * (6 - step) / 6 for step in range(3, 6)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("change", ["other", "grown", "one letter"])
def test_other_text_is_refused_and_moved_text_is_not(
    recipe: Path, run: Path, text: Path, tmp_path: Path, change: str, capsys
) -> None:
    moved = shutil.copytree(text, tmp_path / "moved")
    override, before = f"data.sources.0.path={moved}", contents(run)
    if change == "other":
        for file in moved.iterdir():
            file.write_text(file.read_text().replace("says", "told"))
    elif change == "grown":
        (moved / "zz.txt").write_text("One more document. " * 30)
    else:
        (moved / "0.txt").write_text((moved / "0.txt").read_text().replace("D", "d", 1))
        (moved / "5.txt").write_text((moved / "5.txt").read_text().replace("D", "d", 1))
        (moved / "7.txt").write_text((moved / "7.txt").read_text().replace("D", "d", 1))
    message = refused(capsys, "train", recipe, "training.max_steps=3", override, "--resume")
    assert "the training data are not those of the run to resume" in message and "text (data.sources.0)" in message
    assert contents(run) == before
    shutil.rmtree(moved)
    shutil.copytree(text, moved)
    assert lrc("train", recipe, "training.max_steps=3", override, "--resume") == 0


OTHER_DATA = {
    "data.sequence_length=16": "data.sequence_length (was 32, is 16)",
    "data.seed=5": "data.seed (was 0, is 5)",
    "data.validation=0.4": "documents of this side (data.sources.0)",
    "training.seed=7": "training.data_seed, or training.seed (was 42, is 7)",
    "training.data_seed=7": "training.data_seed, or training.seed (was 42, is 7)",
    "data.packing=best_fit": "data.packing (was contiguous, is best_fit)",
    "data.document_mask=true": "data.document_mask (was False, is True)",
    "data.sources.0.weight=2": None,  # of the only source
    "data.sources.0.tokens=3000": "weights and budgets",
    "data.sources.0.max_documents=9": "text (data.sources.0)",
    "text": "text (data.sources.0)",
    "tokenizer": "tokenizer (data.sources.0)",
}


@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_are_gone_on_with_where_that_is_allowed(
    recipe: Path, run: Path, text: Path, teacher: Path, tmp_path: Path, change: str, caplog, capsys
) -> None:
    override, differs = change, OTHER_DATA[change]
    if change == "text":
        moved = shutil.copytree(text, tmp_path / "moved")
        (moved / "0.txt").write_text("Another document. " * 40)
        override = f"data.sources.0.path={moved}"
    elif change == "tokenizer":
        other = shutil.copytree(teacher, tmp_path / "teacher")
        tree = json.loads((other / "tokenizer.json").read_text())
        vocabulary = tree["model"]["vocab"]
        vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]
        (other / "tokenizer.json").write_text(json.dumps(tree))
        override = f"teacher.model={other}"
    before, options = contents(run), ("train", recipe, "training.max_steps=3", override, "--resume")
    if differs is not None:
        refused(capsys, *options)
        assert contents(run) == before
    assert lrc(*options, "--allow", "data") == 0
    results = read_results(run)
    assert results is not None and (run / "checkpoint-3").is_dir()
    if differs is None:
        assert results.allowed == ()
        return
    ((step, found),) = [(one["step"], one["differs"]) for one in results.allowed]
    assert step == 2 and differs in [one.partition(" (was [")[0] for one in found]
    said = [record.getMessage() for record in caplog.records if record.name == "lowrank_clone"]
    assert any("the training data are others from step 3 on" in line and differs in line for line in said)
    assert lrc("train", recipe, "training.max_steps=4", override, "--resume") == 0  # these are its data now
    assert read_results(run).allowed == results.allowed


def test_allowing_other_data_is_for_resuming(recipe: Path, capsys) -> None:
    assert "--allow data: got it without --resume" in refused(capsys, "train", recipe, "--allow", "data")


def test_every_rule_is_of_a_field_and_every_field_but_the_trainer_s_has_one() -> None:
    fields = {
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if (section, field.name) != ("training", "arguments")
    }
    arguments = {f"training.{name}" for name in training_fields()}
    assert RULES.keys() <= fields | arguments
    assert fields <= RULES.keys()


# --- the public function ----------------------------------------------------------------------------------------------


def test_load_run_gives_the_clone_at_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    assert (
        lrc("train", recipe, "training.max_steps=4", "method.parameterization={ffn: {kind: dense, from_step: 3}}") == 0
    )
    run = tmp_path / "run"
    clone = load_run(run)
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    ids = torch.arange(9)[None]
    assert torch.equal(clone.student(ids).logits, student(ids).logits) and not clone.student.training
    assert clone.kinds["ffn"] == "dense"
    earlier = load_run(str(run), run / "checkpoint-2", device="cpu")
    assert earlier.kinds["ffn"] == "projected"
    stored = load_file(run / "checkpoint-2" / "factors.safetensors")
    assert all(torch.equal(stored[f"factor:{name}"], factor) for name, factor in earlier.factors.items())
    clone.train()(ids).loss.backward()
    for wrong in (run / "student", tmp_path / "none"):
        with pytest.raises(InputError, match=r"holds no recipe\.yaml"):
            load_run(wrong)
    with pytest.raises(InputError, match="no complete checkpoint"):
        load_run(run, run / "checkpoint-3")


def test_the_public_names_prepare_blocks_of_text(text: Path) -> None:
    from tiny_tokenizer import tiny_tokenizer

    from lowrank_clone import DataConfig, SourceConfig, prepare

    config = DataConfig(sources=[SourceConfig(path=str(text))], sequence_length=32, validation=0.2)
    blocks = prepare(config, tiny_tokenizer(), max_length=None, vocab_size=258)
    assert len(blocks.train[0]["input_ids"]) == 32 and len(blocks.validation) > 0


# --- inspecting -------------------------------------------------------------------------------------------------------


def test_inspecting_touches_nothing_of_the_user_s(run: Path, capsys) -> None:
    folder = run / "inspect"
    folder.mkdir()
    (folder / "curves.png").write_text("mine")
    assert "move it elsewhere" in refused(capsys, "inspect", run)
    (folder / "curves.png").rename(folder / "notes.txt")
    assert lrc("inspect", run, "--tokens", "32") == 0
    (folder / "report.html").write_text("my own words")
    assert lrc("inspect", run, "--tokens", "32") == 0
    assert (folder / "report.html.changed").read_text() == "my own words"
    assert (folder / "notes.txt").read_text() == "mine"
    shutil.rmtree(folder)
    folder.symlink_to(run.parent)
    assert "is no folder of this run's" in refused(capsys, "inspect", run)
