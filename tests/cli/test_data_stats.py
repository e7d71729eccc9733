"""`lrc data stats`: the shares asked for, the lengths there are, the teacher's own loss; nothing is written over."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from commands import lrc, refused
from tiny_inputs import save_teacher
from transformers import AutoModelForCausalLM

from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.stats import asked_shares
from lowrank_clone.run import data_stats

LENGTH = 16


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chat and prose in budgets; documents of 10 and of 40 bytes, each a token, with an end."""
    monkeypatch.chdir(tmp_path)
    for name, count, letters in (("prose", 400, 39), ("chat", 200, 9)):
        lines = [json.dumps({"text": f"{i:04}" + "a" * (letters - 4)}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    save_teacher(tmp_path / "teacher")
    tree = {
        "teacher": {"model": "teacher", "dtype": "float32"},
        "student": {"hidden_size": 16},
        "data": {
            "sources": [{"path": "prose.jsonl", "tokens": 9000}, {"path": "chat.jsonl", "tokens": 1000}],
            "sequence_length": LENGTH,
            "validation": 0.1,
        },
        "training": {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def test_shares_lengths_and_losses_are_those_of_the_text(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrc("data", "stats", recipe, "--json", "--tokens", 64) == 0
    prose, chat = json.loads(capsys.readouterr().out)["sources"]
    assert prose["asked"] == 0.9 and chat["asked"] == pytest.approx(0.1)
    assert prose["share"] == pytest.approx(0.9, abs=0.01) and chat["share"] == pytest.approx(0.1, abs=0.01)
    assert prose["lengths"]["documents"] == 400 and prose["lengths"]["counts"] == [0] * 5 + [400]
    assert chat["lengths"]["quantiles"] == {"0.1": 10, "0.5": 10, "0.9": 10} and chat["lengths"]["longest"] == 10
    assert 0.99 < prose["full"] <= 1
    assert prose["teacher"]["tokens"] == 64 - 4


def test_the_teachers_loss_is_that_of_the_model_itself(recipe: Path) -> None:
    from lowrank_clone.recipe.load import load_recipe

    _, stats = data_stats.measure_stats(load_recipe(str(recipe)), 64, print)
    model = AutoModelForCausalLM.from_pretrained("teacher", dtype=torch.float32)
    for one, loss in stats:
        ids = torch.stack([row["input_ids"] for row in one.rows.select(range(4))])
        with torch.no_grad():
            expected = model(input_ids=ids, labels=ids).loss
        assert loss is not None and loss.loss == pytest.approx(float(expected), rel=1e-4)


def test_without_tokens_no_weights_are_read(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stats, "load_teacher", None)
    assert lrc("data", "stats", recipe, "--tokens", 0) == 0
    out = capsys.readouterr().out
    assert "prose.jsonl" in out and "teacher's loss" not in out
    assert Path("data-stats.png").read_bytes().startswith(b"\x89PNG")
    assert lrc("data", "stats", recipe, "--tokens", 0) == 0  # its own figure is replaced


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--figure", "recipe.yaml"], "expected a .png file"),
        (["--figure", "mine.png"], "no figure of this command's"),
        (["--figure", "absent/f.png"], "is no folder"),
        (["--tokens", "-1"], "expected 0"),
        (["data.sources.1.tokens=1e6"], "1,000,000"),
    ],
)
def test_what_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    Path("mine.png").write_bytes(b"\x89PNG of my own")
    assert said in refused(capsys, "data", "stats", recipe, "--tokens", 0, *options)
    assert Path("mine.png").read_bytes() == b"\x89PNG of my own"


def test_the_share_that_is_asked_for() -> None:
    def config(*sources: dict[str, float]) -> DataConfig:
        return DataConfig(sources=[SourceConfig(path="x", **source) for source in sources])  # type: ignore[arg-type]

    assert asked_shares(config({"weight": 3.0}, {"weight": 1.0})) == [0.75, 0.25]
    assert asked_shares(config({"tokens": 10}, {"tokens": 30})) == [0.25, 0.75]
    assert asked_shares(config({"tokens": 10}, {"weight": 1.0})) == [None, None]
