"""Diagnostics against naive computations on tiny models, and `lrc inspect` from end to end."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batch, tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.cli.main import main
from lowrank_clone.factors.parameterize import TARGET
from lowrank_clone.inspection.activations import relative_errors, write_projections
from lowrank_clone.inspection.inspect import inspect_pair
from lowrank_clone.inspection.neurons import mask_test, masked
from lowrank_clone.inspection.ranks import effective_rank, entropy_rank, stream_ranks
from lowrank_clone.inspection.spectra import factor_spectra
from lowrank_clone.model import CloneModel
from lowrank_clone.objective.evaluate import language_loss


def blocks(rows: int = 3, length: int = 12) -> list[dict[str, Any]]:
    return [{"input_ids": row} for row in batch(rows, length).tolist()]


def clone_of(family: str = "llama", **kwargs: Any) -> CloneModel:
    # transformers' grouped product of experts has no float64.
    dtype = torch.float32 if "moe" in family or family == "gpt_oss" else torch.float64
    return CloneModel(tiny_model(family, dtype=dtype), 16, factor_std=0.2, **kwargs)


def outputs(model: Any, module: str, rows: list[dict[str, Any]]) -> torch.Tensor:
    """[n, w]: what a module returns for all blocks."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_hook(lambda m, args, out: seen.append(out.flatten(0, -2)))
    with torch.no_grad():
        model(torch.tensor([row["input_ids"] for row in rows]))
    hook.remove()
    return torch.cat(seen)


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_relative_errors_equal_a_naive_computation() -> None:
    clone, rows = clone_of(), blocks(90)  # more than one forward pass
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    assert [error.tap for error in found] == list(clone.plan.taps)
    for error in found:
        target = outputs(clone.teacher, error.tap.module, rows)
        if error.tap.kind == "write":
            target = target @ clone.factors[error.tap.name].detach()
        student = outputs(clone.student, error.tap.module, rows)
        naive = (student - target).square().sum() / target.square().sum()
        assert error.error == pytest.approx(float(naive), rel=1e-9)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0
    assert {error.place for error in found if error.tap.layer == 1} == {error.place for error in found}


def test_a_student_as_wide_as_what_its_teacher_uses_has_no_error() -> None:
    teacher = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():  # the last 8 channels are silent
        for name, parameter in teacher.named_parameters():
            if "norm" not in name and parameter.shape[-1] == 24:
                parameter[..., 16:] = 0
            elif parameter.shape[0] == 24 and parameter.ndim == 2:
                parameter[16:] = 0
    clone = CloneModel(teacher, 16)
    scale = math.sqrt(24 / 16)  # the norm takes the mean square over fewer channels
    parameters = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, role in clone.plan.roles.items():
            if role.kind == "vector":
                clone.factors[name] = parameters[name][:16] * scale
            elif role.kind != "inherited":
                clone.factors[name] = torch.eye(24, 16, dtype=torch.float64)
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, blocks())
    assert max(error.error for error in found if error.error is not None) < 1e-9  # for the norms' epsilon


@pytest.mark.parametrize("kind", ["dense", "core"])
def test_errors_do_not_depend_on_the_parameterization(kind: str) -> None:
    clone, rows = clone_of(), blocks()
    before = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    clone.reparameterize({"attention": kind, "ffn": kind})
    after = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, rows)
    assert [e.error for e in after] == pytest.approx([e.error for e in before], rel=1e-9)
    assert all(value.shape == (24, 16) for value in write_projections(clone.factors, clone.plan).values())


def test_a_write_without_its_projection_is_not_compared() -> None:
    clone = clone_of(attn_out_tap="teacher", parameterization={"attention": "dense"})
    found = relative_errors(clone.teacher, clone.student, clone.plan, clone.factors, blocks())
    unknown = {error.tap.name for error in found if error.error is None}
    assert unknown == {tap.name for tap in clone.plan.taps if tap.kind == "write" and tap.group == "attention"}


def test_effective_rank_of_known_covariances() -> None:
    orthogonal = torch.cat([torch.eye(5), -torch.eye(5)])  # mean zero, unit rows, covariance I / 5
    assert effective_rank(orthogonal) == pytest.approx(5)
    assert effective_rank(3 * orthogonal + torch.arange(5.0)) == pytest.approx(5)  # neither size nor place matters
    assert effective_rank(torch.outer(torch.arange(6.0), torch.ones(4))) == pytest.approx(1)
    assert effective_rank(torch.ones(6, 4)) == 0  # nothing varies
    weighted = torch.cat([orthogonal[[0, 5]].repeat(3, 1), orthogonal[[1, 6]]])  # eigenvalues 3/4 and 1/4
    assert effective_rank(weighted) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert entropy_rank(torch.tensor([2.0, 2.0, 0.0])) == pytest.approx(2)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_stream_ranks_equal_those_of_the_layers_outputs(family: str) -> None:
    clone, rows = clone_of(family), blocks(90)
    found = stream_ranks(clone.teacher, clone.student, clone.plan, rows)
    assert [rank.layer for rank in found] == [0, 1, 2]
    for model, ranks in ((clone.teacher, [r.teacher for r in found]), (clone.student, [r.student for r in found])):
        naive = [outputs(model, "model.embed_tokens", rows)]
        naive += [outputs(model, f"model.layers.{i}", rows) for i in range(2)]
        assert ranks == pytest.approx([effective_rank(stream) for stream in naive], rel=1e-5)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0


def test_spectra_are_the_factors_singular_values() -> None:
    clone = clone_of()
    one_hot = torch.eye(24, 16, dtype=torch.float64) * 3
    first = "model.layers.0.mlp.down_proj.weight"
    clone.factors[first] = one_hot
    found = {spectrum.factor: spectrum for spectrum in factor_spectra(clone.factors, clone.plan)}
    assert set(found) == {name for name, factor in clone.factors.items() if factor.ndim == 2}
    for name, spectrum in found.items():
        squares = torch.linalg.eigvalsh(clone.factors[name].detach().T @ clone.factors[name].detach()).flip(0)
        assert spectrum.values == pytest.approx(squares.sqrt().tolist(), rel=1e-6)
        assert spectrum.is_projection
    assert found[first].condition == pytest.approx(1)
    assert found[first].effective_rank == pytest.approx(16)
    assert (found[first].layer, found[first].place) == (0, "mlp.down_proj")
    clone.factors[first] = one_hot * (torch.arange(16) > 0)
    assert {s.factor: s for s in factor_spectra(clone.factors, clone.plan)}[first].condition == math.inf


def test_spectra_tell_projections_from_matrices_trained_themselves() -> None:
    clone = clone_of(parameterization={"ffn": "dense"})
    kinds = {s.factor: s.is_projection for s in factor_spectra(clone.factors, clone.plan)}
    down = "model.layers.0.mlp.down_proj.weight"
    assert not kinds[down]
    assert kinds[down + TARGET]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "starcoder2"])
def test_masking_equals_zeroed_columns(family: str) -> None:
    clone, rows = clone_of(family), blocks()
    test = mask_test(clone.teacher, clone.student, clone.plan, rows, top=7, seeds=(0, 1))
    assert test is not None
    assert (test.candidates, test.tokens, len(test.teacher.random)) == (80, 33, 2)
    taps = {tap.name: tap for tap in clone.plan.taps if tap.kind == "write" and tap.group == "ffn"}
    activity = {}
    for name, tap in taps.items():
        seen: list[torch.Tensor] = []
        hook = clone.teacher.get_submodule(tap.module).register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append(args[0].flatten(0, -2))
        )
        clone.teacher(torch.tensor([row["input_ids"] for row in rows]))
        hook.remove()
        activity |= {(name, i): float(a) for i, a in enumerate(torch.cat(seen).abs().mean(0))}
    assert set(test.neurons) == set(sorted(activity, key=lambda neuron: -activity[neuron])[:7])
    for model, losses in ((clone.teacher, test.teacher), (clone.student, test.student)):
        assert losses.plain == language_loss(model, rows).loss
        cut = copy.deepcopy(model)
        for name, index in test.neurons:
            cut.get_submodule(taps[name].module).weight[:, index] = 0
        assert losses.top == pytest.approx(language_loss(cut, rows).loss, rel=1e-12)
        assert losses.top != pytest.approx(losses.plain, rel=1e-6)
    assert hooks_of(clone.teacher) == hooks_of(clone.student) == 0


def test_masking_nothing_changes_nothing_and_no_more_than_half_is_masked() -> None:
    clone, rows = clone_of(), blocks()
    with masked(clone.student, {}, []):
        assert language_loss(clone.student, rows).loss == language_loss(clone.student, rows).loss
    test = mask_test(clone.teacher, clone.student, clone.plan, rows, top=1000, seeds=())
    assert test is not None
    assert len(test.neurons) == 40


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
