"""`lrc report`: what it reads of runs, where it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import contents, lrc, refused

from lowrank_clone.run.report import RunReader, named


def text_of(page: Path) -> str:
    """What a reader sees, without scripts and styles."""
    text = re.sub(r"<(script|style).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


def change(file: Path, **values: Any) -> None:
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({**tree, **values}))


def test_training_leaves_a_report_of_what_it_did(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    shown = text_of(run / "report.html")
    assert "come to its teacher," in shown and "After 128 training tokens" in shown
    assert f"with {results['teacher']['loss']:.3f}" in shown
    assert f"it loses {results['student']['2']:.3f} nats per token on {results['teacher']['tokens']:,}" in shown
    assert "finished, step 2 of 2" in shown and "hidden_size: 16" in shown
    for name in ("report.html", "samples.json"):
        assert name in json.loads((run / "manifest.json").read_text())["files"]
    samples = json.loads((run / "samples.json").read_text())
    assert len(samples["samples"]) == 4 and [rank["layer"] for rank in samples["ranks"]] == [0, 1, 2]
    assert samples["rank_tokens"] == 4 * 32
    for sample in samples["samples"]:
        assert all(" ".join(text.split()) in shown for text in sample.values())


def test_a_report_needs_neither_checkpoint_nor_teacher_nor_text(run: Path, capsys: Any) -> None:
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teacher"]["model"] = "/nowhere/teacher"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert lrc("report", run) == 0
    shown = text_of(run / "report.html")
    assert "Its plan is not shown, since its teacher's config can't be read" in shown
    assert "How close does the student come to its teacher, teacher?" in shown


def test_runs_side_by_side_and_figures(run: Path, tmp_path: Path, capsys: Any) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    output, figures = tmp_path / "both.html", tmp_path / "figures"
    for _ in range(2):  # and once more over what it wrote
        assert lrc("report", run, other, "-o", output, "--figures", figures) == 0
    assert "Which of these 2 students comes closest" in text_of(output)
    assert {path.suffix for path in figures.iterdir()} == {".svg", ".png"}
    assert (figures / "lm.svg").read_text().startswith("<svg")
    results = json.loads((other / "results.json").read_text())
    change(other / "results.json", validation={**results["validation"], "digest": "0" * 64})
    assert lrc("report", run, other, "-o", output) == 0
    assert "They were validated on other texts" in text_of(output)


def test_other_tokenizers_side_by_side_are_said(run: Path, teacher: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    foreign = Path(shutil.copytree(teacher, tmp_path / "foreign"))
    tree = json.loads((foreign / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][-1], "id": 258, "content": "<|more|>"})
    (foreign / "tokenizer.json").write_text(json.dumps(tree))
    recipe = yaml.safe_load((other / "recipe.yaml").read_text())
    recipe["teacher"]["model"] = str(foreign)
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    results = json.loads((other / "results.json").read_text())
    change(other / "results.json", validation={**results["validation"], "digest": "0" * 64})
    assert lrc("report", run, other, "-o", tmp_path / "both.html") == 0
    shown = text_of(tmp_path / "both.html")
    assert "They have other tokenizers" in shown and "can't be ranked" in shown


def test_what_is_no_run_or_has_no_metrics_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert "is no folder" in refused(capsys, "report", tmp_path / "nothing")
    assert "is no folder" in refused(capsys, "report", tmp_path / "file")
    assert "holds no recipe.yaml" in refused(capsys, "report", tmp_path / "empty")
    assert "given twice" in refused(capsys, "report", run, f"{run}/../run")
    assert "at most 10" in refused(capsys, "report", *[tmp_path / str(i) for i in range(11)])
    assert "expected 1 to" in refused(capsys, "report", run, "--watch", "--every", 0)
    before = contents(run)
    (run / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    assert "holds no metrics.jsonl, so there is nothing to report" in refused(capsys, "report", run)
    (run / "metrics.jsonl").write_text("garbage\n")
    assert "without one good line" in refused(capsys, "report", run)
    (tmp_path / "metrics.jsonl").replace(run / "metrics.jsonl")
    assert contents(run) == before
    (run / "recipe.yaml").write_text("teacher: [")
    assert "recipe.yaml" in refused(capsys, "report", run)


def test_a_damaged_line_is_left_out_and_said_on_the_page(run: Path, caplog: Any) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lm": \n')
    assert lrc("report", run) == 0
    assert "left out damaged line" in caplog.text
    assert "1 damaged line(s) of metrics.jsonl are left out." in text_of(run / "report.html")


@pytest.mark.parametrize("name", ["results.json", "samples.json", "versions.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"samples": [7], "ranks": 3}'])
def test_damaged_files_beside_cost_their_part_alone(name: str, damage: bytes, run: Path) -> None:
    (run / name).write_bytes(damage)
    assert lrc("report", run) == 0
    shown = text_of(run / "report.html")
    said = {"results.json": "results.json is missing or damaged", "samples.json": "samples.json is missing or damaged"}
    assert said.get(name, "Recipe and versions") in shown


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "3", None, [1], {}])
def test_a_teacher_s_loss_that_is_no_number_is_not_known(loss: Any, run: Path) -> None:
    change(run / "results.json", teacher={"loss": loss, "tokens": 7}, allowed=[7, None, {}])
    samples = json.loads((run / "samples.json").read_text())
    change(run / "samples.json", ranks=[{**samples["ranks"][0], "teacher": float("nan")}])
    assert lrc("report", run) == 0
    shown = text_of(run / "report.html")
    assert "validation loss, teacher –" in shown and "samples.json is missing or damaged" in shown


def test_nothing_of_the_user_s_is_written_over(run: Path, tmp_path: Path, capsys: Any) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert "is no report of this library's" in refused(capsys, "report", run, "-o", mine)
    assert "is no report" in refused(capsys, "report", run, "-o", run / "recipe.yaml")
    assert "is a folder" in refused(capsys, "report", run, "-o", tmp_path)
    assert "is no folder" in refused(capsys, "report", run, "-o", tmp_path / "none" / "a.html")
    (tmp_path / "link.html").symlink_to(mine)
    assert "is a link" in refused(capsys, "report", run, "-o", tmp_path / "link.html")
    assert "is no figure" in refused(capsys, "report", run, "--figures", tmp_path)
    assert "is a file" in refused(capsys, "report", run, "--figures", mine)
    assert mine.read_text() == "mine"
    changed = (run / "report.html").read_text() + "<!-- my note -->"
    (run / "report.html").write_text(changed)
    assert lrc("report", run) == 0
    assert (run / "report.html.changed").read_text() == changed and "my note" not in (run / "report.html").read_text()
    (run / "report.html").write_text("all mine")
    assert "is no report" in refused(capsys, "report", run)


def test_results_of_the_harness_are_shown_and_damaged_ones_said(run: Path) -> None:
    folder = run / "eval" / "student"
    folder.mkdir(parents=True)
    scores = {"arc_easy": {"alias": "arc_easy", "acc,none": 0.4, "acc_stderr,none": 0.01, "exact,strict": 0.25}}
    tree = {"model_name": "/runs/run/student", "results": scores, "config": {"model": "hf"}}
    (folder / "results_2026-01-01.json").write_text(json.dumps(tree))
    scores["arc_easy"]["acc,none"] = 0.5
    (folder / "results_2026-01-02.json").write_text(json.dumps(tree))
    (folder / "results_2026-01-03.json").write_text("{")
    assert lrc("report", run) == 0
    shown = text_of(run / "report.html")
    assert "arc_easy acc 0.5000 ± 0.0100" in shown and "exact (strict) 0.2500" in shown and "0.4000 ± " not in shown
    assert "results_2026-01-03.json can't be read as results" in shown


def test_events_and_resumptions_are_listed(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines.append(json.dumps({"step": 2, "event": "spike", "lm_before": 3.0}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    change(run / "results.json", allowed=[{"step": 1, "data.seed": "3 for 4"}])
    change(run / "versions.json", resumed=[{"started": "2026-01-01T00:00:00", "device": "cpu"}, 7])
    assert lrc("report", run) == 0
    shown = text_of(run / "report.html")
    assert "1 went on with other data data.seed 3 for 4" in shown
    assert "2 spike lm_before 3.0" in shown and "resumed at 2026-01-01T00:00:00 on cpu" in shown


def test_evaluations_of_an_earlier_text_are_left_out(run: Path) -> None:
    change(run / "results.json", since=2)
    found = RunReader(run, "run").read()
    assert "before" not in found.losses and "now" in found.losses
    assert not [line for line in found.metrics if line["step"] < 2 and "eval_lm" in line]
    assert any("other validation text" in note for note in found.notes)


def test_watching_ends_when_the_run_does(run: Path, tmp_path: Path, capsys: Any) -> None:
    student, metrics = run / "student", run / "metrics.jsonl"
    good = metrics.read_text()
    student.rename(tmp_path / "student")
    metrics.unlink()
    thread = threading.Thread(target=lambda: lrc("report", run, "--watch", "--every", 1))
    thread.start()
    page = run / "report.html"

    def waits(told: str) -> None:
        end = time.monotonic() + 60
        while told not in (page.read_text(encoding="utf-8") if page.exists() else "") and time.monotonic() < end:
            time.sleep(0.05)
        assert told in page.read_text(encoding="utf-8")

    waits("unfinished, step 0 of 2")
    assert 'data-live="1"' in page.read_text(encoding="utf-8")
    metrics.write_text(good + '{"step": 2, "lm"')  # a line that is being written
    waits("unfinished, step 2 of 2")
    metrics.write_text(good)
    (tmp_path / "student").rename(student)
    waits(">finished, step 2 of 2")
    thread.join(timeout=60)
    assert not thread.is_alive() and 'data-live="1"' not in page.read_text(encoding="utf-8")


def test_a_finished_run_is_not_watched(run: Path, capsys: Any) -> None:
    assert lrc("report", run, "--watch") == 0
    assert "written again" not in capsys.readouterr().out


def test_a_folder_that_can_t_be_written_to_leaves_what_was_there(run: Path, capsys: Any, monkeypatch: Any) -> None:
    before = (run / "report.html").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, os.strerror(28), str(run / "report.html"))

    monkeypatch.setattr("lowrank_clone.run.report_file.os.replace", full)
    assert "No space left on device; give another file with -o" in refused(capsys, "report", run)
    assert (run / "report.html").read_bytes() == before


def test_names_are_short_and_no_two_are_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("x/run", "y/run", "other")]
    assert list(named(folders).values()) == ["x/run", "y/run", "other"]
