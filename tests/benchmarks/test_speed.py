"""What the benchmarks compare with computes the same thing, and the benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model

from lowrank_clone.model import CloneModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECOMPUTE = ("nothing", "elementwise", "all")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reference

    return reference


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory


@pytest.mark.parametrize("tied", [True, False])
def test_the_published_scheme_and_the_library_agree(reference: Any, tied: bool) -> None:
    teacher = tiny_model("mistral", dtype=torch.float64, sliding_window=None, tie_word_embeddings=tied)
    ids, temperature = batch(), 40.0
    # The published code leaves out T^2 and sums the KL over positions; it compares attention at teacher width.
    weight = ids.shape[1] / temperature**2
    clone = CloneModel(teacher, 16, temperature=temperature, kl_weight=weight, attn_out_tap="teacher").train()
    scheme = reference.PublishedScheme(teacher, 16, temperature).double()
    trained = {}
    for name, factor in clone.factors.named_parameters():
        module = scheme.student.get_submodule(name.rsplit(".", 1)[0])
        trained[name] = module.weight if clone.plan.roles[name].kind == "vector" else module.factor
        with torch.no_grad():
            trained[name].copy_(factor)
    loss, _ = scheme(ids)
    loss.backward()
    ours = clone(ids).loss
    ours.backward()
    clone.factors.pull()
    assert loss.item() == pytest.approx(ours.item(), rel=1e-6)  # it takes its losses in float32
    for name, factor in clone.factors.named_parameters():
        error = (factor.grad - trained[name].grad).norm() / factor.grad.norm()
        assert error < 1e-4, name


def test_a_case_runs(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "speed.py", "--cases", "e", "d", "--shape", "tiny", "--rounds", "1"]
    command += ["--batch", "2", "16", "--output", tmp_path / "raw.json", "--figure", tmp_path / "speed.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(e) / (d), one micro-batch" in done.stdout
    assert (tmp_path / "speed.png").stat().st_size < 200_000


def test_a_case_is_profiled() -> None:
    command = [sys.executable, BENCHMARKS / "speed.py", "--profile", "f", "--shape", "tiny", "--batch", "2", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TapMSE" in done.stdout or "aten::mm" in done.stdout


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("shape", ["llama-3.2-3b", "qwen2.5-7b"])
def test_the_cost_model_at_true_shapes_is_what_tensors_add_up_to(memory: Any, shape: str, recompute: str) -> None:
    dtype, batch = memory.CASES[shape]
    weights, peak, cost = memory.count(shape, dtype, batch, 1, recompute)
    assert cost.weight_bytes == pytest.approx(weights, rel=1e-4)
    assert cost.peak_bytes == pytest.approx(peak, rel=0.05)


def test_memory_is_tabled(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "memory.py", "--shape", "tiny", "--accumulation", "1"]
    done = subprocess.run([*command, "--output", tmp_path / "raw.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| tiny -> 32 | float32 | 2 x 64 | 1 |") == 3
    assert [row["recompute"] for row in json.loads((tmp_path / "raw.json").read_text())] == list(RECOMPUTE)
