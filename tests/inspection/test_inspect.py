"""All diagnostics of a clone, and `lrc inspect` from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from inspected import blocks, clone_of
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.cli.main import main
from lowrank_clone.inspection.inspect import inspect_pair


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_without_observable_neurons(family: str) -> None:
    clone = clone_of(family)
    inspection = inspect_pair(clone.teacher, clone.student, clone.plan, clone.factors, blocks())
    assert inspection.masking is None
    assert len(inspection.errors) == len(clone.plan.taps)
    assert inspection.tokens == 36


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on a tiny teacher."""
    folder = tmp_path_factory.mktemp("inspect")
    tiny_model("llama", vocab_size=258).save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"Text {i} of a few that a tiny model reads. " * 8)
    recipe = {
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "student": {"hidden_size": 16, "dtype": "float32"},
        "data": {"sources": [{"path": str(folder / "*.txt")}], "sequence_length": 32, "validation": 0.3},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_steps": 2,
            "use_cpu": True,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_inspect_prints_tables_and_writes_the_page(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_folder), "--tokens", "70", "--start"]) == 0
    printed = capsys.readouterr().out
    for title in ("Relative error of activations, student before training", "Effective rank", "Neuron masking"):
        assert title in printed
    assert "96 validation tokens" in " ".join(printed.split())  # three whole blocks of 32
    folder = run_folder / "inspect"
    pngs = {path.name for path in folder.glob("*.png")}
    assert pngs == {"curves.png", "relative_error.png", "effective_rank.png", "factors.png", "masking.png"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == len(pngs)
    assert "checkpoint-2" in page


def test_fewer_tokens_than_asked_for_is_said(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_folder), "--tokens", "1000000", "--no-html"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"All [\d,]+ validation tokens are used, fewer than --tokens 1,000,000\.", printed)


def test_no_html_writes_figures_alone(run_folder: Path) -> None:
    (run_folder / "inspect" / "report.html").unlink(missing_ok=True)
    assert main(["inspect", str(run_folder), "--tokens", "32", "--no-html"]) == 0
    assert not (run_folder / "inspect" / "report.html").exists()
    assert (run_folder / "inspect" / "factors.png").exists()


def test_inspect_refuses_in_one_line(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text())
    refusals = {
        (str(tmp_path / "nowhere"),): "holds no recipe.yaml; expected the folder of a run",
        (str(begun),): "holds no complete checkpoint",
        (str(run_folder), "--tokens", "0"): "--tokens: got 0",
    }
    capsys.readouterr()
    for arguments, message in refusals.items():
        assert main(["inspect", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
