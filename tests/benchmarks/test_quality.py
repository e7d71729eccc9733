"""The quality benchmark runs, resumes run by run, and reports what was measured and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality

    monkeypatch.setattr(quality, "LENGTH", 32)
    monkeypatch.setattr(quality, "BATCH", 2)
    monkeypatch.setattr(quality, "CALIBRATION_TOKENS", 128)
    return quality


@pytest.fixture
def options(quality: Any, tmp_path: Path) -> Any:
    """Of a benchmark on a tiny teacher and a tiny text."""
    teacher, output = tmp_path / "teacher", tmp_path / "out"
    tiny_model("llama", vocab_size=258, tie_word_embeddings=True).save_pretrained(teacher)
    tiny_tokenizer().save_pretrained(teacher)
    (output / "text").mkdir(parents=True)
    for number in range(20):
        (output / "text" / f"{number}.txt").write_text(f"Document {number} says little. " * 8, encoding="utf-8")
    arguments = ["--teacher", str(teacher), "--output", str(output), "--hidden-size", "16", "--tokens", "256"]
    arguments += ["--grid-tokens", "128", "--validation-blocks", "2", "--dtype", "float32", "--threads", "1"]
    return quality.parse([*arguments, "--variants", "scratch", "calibrated_core"])


def test_runs_are_done_once_and_reported(quality: Any, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = [run.name for run in quality.grid("scratch", options) + quality.grid("calibrated_core", options)]
    options.max_runs = 1
    quality.main(options)
    assert [file.stem for file in options.output.glob("*-seed*.json")] == names[:1]
    options.max_runs = None
    quality.main(options)
    files = {file: file.stat().st_mtime_ns for file in options.output.glob("*-seed*.json")}
    assert {file.stem for file in files} > set(names)  # the full runs too
    assert next(quality.missing(options), None) is None
    quality.main(options)
    assert files == {file: file.stat().st_mtime_ns for file in options.output.glob("*-seed*.json")}
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    assert "not run" in rows["scratch, LM + KL"]
    assert "not run" not in rows["calibrated + core FFN"]
    assert (options.output / "quality.png").stat().st_size > 0
    result = json.loads(next(file for file in files if "core-muon" in file.name and "-256-" in file.name).read_text())
    assert result["curve"][-1][0] == 256
    assert result["calibration_tokens"] == 128


def test_token_efficiency_is_a_bound_where_it_was_not_reached(quality: Any) -> None:
    curve = [[0, 9.0], [100, 8.0], [200, 7.0]]
    results = [{"variant": "scratch", "tokens": 200, "diverged": False, "curve": curve}]
    assert quality.scratch_tokens(7.5, results) == "≤ 200"
    assert quality.scratch_tokens(6.9, results) == "> 200"
    assert quality.scratch_tokens(6.9, []) == "–"
