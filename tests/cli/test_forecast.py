"""What a dry run says of the text, the epochs and the time, and what it asks."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.cli.main import main
from lowrank_clone.recipe.load import load_recipe
from lowrank_clone.run.forecast import measured_rate
from lowrank_clone.run.output_folder import output_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    tiny_model("llama", vocab_size=258, eos_token_id=257, pad_token_id=None).save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    (folder / "text").mkdir()
    for i in range(20):
        (folder / "text" / f"{i:02}.txt").write_text(f"{i:02}" + "x" * 317)  # with its eos 320 tokens, ten blocks of 32
    (folder / "text" / "README.md").write_text("no text")
    tree = {
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "student": {"hidden_size": 16, "dtype": "float32"},
        "data": {"sources": [str(folder / "text")], "sequence_length": 32, "validation": 0.1},
        "training": {"output_dir": str(folder / "run"), "max_steps": 45, "per_device_train_batch_size": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


def lrc(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out if code == 0 else err


def test_documents_tokens_blocks_epochs_and_time(recipe: Path, capsys) -> None:
    code, out = lrc(capsys, "train", recipe, "--dry-run")
    assert code == 0
    assert "20 documents, 6,400 tokens" in out and "not read: 1 file of other kinds" in out
    assert "180 blocks of 32 tokens to train on, 20 to validate on" in out  # two of twenty documents are held out
    assert "The run reads 90 blocks in 45 steps: 0.5 epochs" in out
    assert re.search(r"Time on this machine \(.*\): .* or more for 2,880 tokens\. Estimated: the cost model's", out)
    assert "Time on one h100-80gb: under a second" in out and "Predicted, not measured" in out


def test_epochs_are_turned_into_steps(recipe: Path, capsys) -> None:
    code, out = lrc(capsys, "train", recipe, "--dry-run", "training.max_steps=-1", "training.num_train_epochs=3")
    assert code == 0 and "The run reads 540 blocks in 270 steps: 3 epochs" in out


def test_a_run_without_a_length_reads_its_text_once(recipe: Path, capsys) -> None:
    code, out = lrc(capsys, "train", recipe, "--dry-run", "training.max_steps=-1")
    assert code == 0 and "The run reads 180 blocks in 90 steps: 1 epochs" in out


def test_the_last_step_of_an_epoch_may_be_smaller(recipe: Path, capsys) -> None:
    asked = ["training.max_steps=-1", "training.num_train_epochs=2", "training.per_device_train_batch_size=100"]
    code, out = lrc(capsys, "train", recipe, "--dry-run", *asked)
    assert code == 0 and "The run reads 360 blocks in 4 steps: 2 epochs" in out


@pytest.mark.parametrize("length", ["max_steps=1", "num_train_epochs=5"])
def test_less_text_than_a_step_is_refused(recipe: Path, capsys, length: str) -> None:
    asked = ["training.max_steps=-1", f"training.{length}", "training.per_device_train_batch_size=181"]
    code, err = lrc(capsys, "train", recipe, *asked)
    assert code == 2 and err.count("\n") == 1
    assert "an optimiser step reads 181 blocks (181 x 1 micro-batches x 1 processes), and the text makes 180" in err


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_more_than_one_pass_is_a_question(recipe: Path, capsys, options: tuple[str, ...]) -> None:
    code, err = lrc(capsys, "train", recipe, "training.max_steps=91", *options)
    assert code == 2 and err.count("\n") == 1
    assert "data.repeat: the run's 5,824 tokens are 1.01 epochs of this text, which has 5,760" in err
    assert "shorten the run to training.max_steps=90, or accept it with data.repeat=true" in err
    assert not (recipe.parent / "run").exists()
    code, err = lrc(capsys, "train", recipe, "training.max_steps=-1", "training.total_tokens=4e9", *options)
    assert code == 2 and "are 694,444 epochs of this text" in err


def test_a_question_can_be_answered(recipe: Path, capsys) -> None:
    asked = ["training.max_steps=-1", "training.total_tokens=4e9", "data.repeat=true"]
    code, out = lrc(capsys, "train", recipe, "--dry-run", *asked)
    assert code == 0 and "694,444 epochs" in out


def test_a_text_that_fills_no_two_blocks_is_refused_before_any_work(recipe: Path, tmp_path: Path, capsys) -> None:
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("some words")
    code, err = lrc(capsys, "train", recipe, f"data.sources=[{tmp_path}]")
    assert code == 2 and "data.sequence_length: got 32, and the text has 22 tokens in all" in err
    assert "lower it to 5 or less" in err


def test_one_document_says_how_to_train_on_it(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "book.txt").write_text("some words " * 1000)
    code, err = lrc(capsys, "train", recipe, "--dry-run", f"data.sources=[{tmp_path / 'book.txt'}]")
    assert code == 2 and err.startswith("lrc: error: data.sources.0.path: ") and "is one document with text" in err
    assert "data.validation" in err and "split it into several files" in err


def test_the_rate_of_products_is_measured() -> None:
    rate = measured_rate(torch.device("cpu"), torch.float32, 64, seconds=0.01)
    assert 1e6 < rate < 1e16


# --- lrc init -----------------------------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_passes_a_dry_run(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, text, odd = recipe.parent / "teacher", recipe.parent / "text", tmp_path / "a [b] #c: 'd'.txt"
    odd.write_text("y" * 100_000)
    code, out = lrc(capsys, "init", teacher, text, odd, "-o", "new.yaml")
    assert code == 0 and "Next: lrc train new.yaml --dry-run" in out, out
    made = load_recipe("new.yaml")
    assert (made.teacher.model, [source.path for source in made.data.sources]) == (str(teacher), [str(text), str(odd)])
    weights = [source.weight for source in made.data.sources]
    assert weights == pytest.approx([0.0601, 0.94], rel=0.02)  # 6,400 and 100,002 tokens
    assert made.student.hidden_size == 16 and made.data.sequence_length == 64  # of 24 channels and of at most 64 tokens
    assert sum(line.count("#") for line in (tmp_path / "new.yaml").read_text().splitlines()) > 10
    code, _ = lrc(capsys, "train", "new.yaml", "--dry-run")
    assert code == 0
    before = (tmp_path / "new.yaml").read_text()
    code, err = lrc(capsys, "init", teacher, text, "-o", "new.yaml")
    assert code == 2 and "is there already, and nothing is overwritten" in err
    assert (tmp_path / "new.yaml").read_text() == before


def test_init_checks_its_teacher_and_its_text(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, text = recipe.parent / "teacher", recipe.parent / "text"
    for arguments, message in (
        ((teacher, tmp_path / "none.txt"), "data.sources.0.path: no such file"),
        ((tmp_path / "none", text), "teacher.model: "),
        ((teacher, text, "-o", "no/folder.yaml"), "-o: there is no folder `no`"),
        ((teacher,), "arguments are required: text"),
    ):
        code, err = lrc(capsys, "init", *arguments)
        assert code == 2 and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_no_output_folder_is_the_default_one(recipe: Path) -> None:
    assert output_folder(load_recipe(str(recipe), ["training.output_dir="])) == Path("runs/train")
