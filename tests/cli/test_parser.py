"""The command line as people type it: any order, one line for a mistake, and no PyTorch before it is needed."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_clone.cli.main import main
from lowrank_clone.cli.parser import parse
from lowrank_clone.errors import InputError
from lowrank_clone.recipe.load import shipped_recipes

MINIMAL = (
    "teacher: {model: some/model}\nstudent: {hidden_size: 64}\ndata: {sources: [text.txt], sequence_length: 128}\n"
)
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "pandas", "accelerate")


@pytest.mark.parametrize(
    "line",
    [
        "train r.yaml a.b=1 c.d=2 --dry-run --overwrite",
        "train r.yaml --dry-run a.b=1 --overwrite c.d=2",
        "train --overwrite --dry-run r.yaml a.b=1 c.d=2",
        "train --overwrite r.yaml a.b=1 --dry-run c.d=2",
    ],
)
def test_options_and_overrides_in_any_order(line: str) -> None:
    got = parse(line.split())
    assert (got.command, got.recipe, got.overrides) == ("train", "r.yaml", ["a.b=1", "c.d=2"])
    assert (got.dry_run, got.overwrite, got.resume) == (True, True, None)


def test_every_command_takes_options_behind_its_arguments() -> None:
    assert parse(["plan", "r.yaml"]).overrides == []
    assert parse(["inspect", "runs/a", "--tokens", "7", "--start"]).tokens == 7
    assert parse(["inspect", "--start", "runs/a"]).run == "runs/a"
    assert parse(["families", "--markdown", "qwen3"]).model_type == "qwen3"
    assert parse(["families", "qwen3", "--markdown"]).markdown
    assert parse(["init", "t", "a.txt", "-o", "x.yaml", "b.txt"]).text == ["a.txt", "b.txt"]
    assert parse(["export", "a", "b"]).output == "b"
    assert parse(["recipes"]).name is None
    assert parse(["demo", "a.b=1"]).overrides == ["a.b=1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian r.yaml", "no command `trian`; did you mean `lrc train`?"),
        ("zzz", "no command `zzz`; there are init, train, "),
        ("--verison", "unrecognized arguments: --verison"),
        ("train r.yaml --dryrun", "unknown option `--dryrun`; did you mean `--dry-run`?"),
        ("train r.yaml --dry", "unknown option `--dry`"),
        ("train r.yaml --over", "unknown option `--over`"),
        ("train r.yaml --training.learning_rate=1", "are set as `training.learning_rate=...`, without dashes"),
        ("train r.yaml --resume --overwrite", "not allowed with argument"),
        ("train", "arguments are required: recipe; `lrc train --help`"),
        ("inspect runs/a --tokens many", "argument --tokens: invalid int value: 'many'"),
        ("inspect runs/a --tokens", "argument --tokens: expected one argument"),
        ("export runs/a", "arguments are required: output"),
        ("families a b", "unrecognized arguments: b"),
    ],
)
def test_mistakes_are_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        parse(line.split())
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lrc: error: ") and message in err


@pytest.mark.parametrize(("line", "code"), [("", 2), ("--help", 0), ("--version", 0), ("train --help", 0)])
def test_help_and_version(line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    out, err = capsys.readouterr()
    assert ended.value.code == code and err == ""
    assert "lowrank-clone 0" in out if line == "--version" else "usage: lrc" in out


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: lines.index("")]] == shipped_recipes()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines[: lines.index("")])
    assert main(["recipes", "lrc-1.7b"]) == 0
    assert "hidden_size: 1200" in capsys.readouterr().out
    assert main(["recipes", "lrc-1.9b"]) == 2
    assert "did you mean `lrc-1.7b`?" in capsys.readouterr().err


EARLY = [
    ("train nowhere.yaml", "no such file or shipped recipe"),
    ("train .", "cannot be read (it is a folder)"),
    ("train recipe.yaml training.learning_rte=1", "did you mean `training.learning_rate`?"),
    ("train recipe.yaml training.eval_strategy=step", "did you mean steps?"),
    ("train recipe.yaml training.learning_rate=fast", "training.learning_rate: got 'fast' (str), expected a number"),
    ("train recipe.yaml training.max_steps=-5", "training.max_steps: got -5 (int), expected a whole number from 1 to"),
    ("train recipe.yaml --dry-run", "data.sources.0.path: no such file or folder as `text.txt`"),
    ("train recipe.yaml data.sources=[folder] data.sources.0.text_column=body", "data.sources.0.text_column: "),
    ("train recipe.yaml training.output_dir=folder", "training.output_dir: `folder` is not empty and holds no run"),
    ("train recipe.yaml training.bf16=true", "training.bf16: got true, expected false; the student's precision is"),
    ("train recipe.yaml data.sources=[folder] teacher.model=./x", "teacher.model: no config.json in `./x`"),
    ("plan recipe.yaml student.hidden_size=1", "student.hidden_size: got 1 (int), expected a whole number from 4"),
    ("recipes nothing", "no recipe `nothing` comes with the library"),
]


def test_the_usual_mistakes_are_told_without_pytorch(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text('{"text": "one"}\n' * 20)
    script = (
        "import sys; from lowrank_clone.cli.main import main\n"
        f"for line in {[line for line, _ in EARLY]!r}:\n"
        "    assert main(line.split()) == 2, line\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    for line, (_, message) in zip(done.stderr.splitlines(), EARLY, strict=True):
        assert line.startswith("lrc: error: ") and message in line


def environment() -> dict[str, str]:
    """With this package's absolute path, for processes that start in another folder."""
    import lowrank_clone

    return {**os.environ, "PYTHONPATH": str(Path(lowrank_clone.__file__).parents[1])}


def test_as_a_module_and_into_a_pipe_that_closes(tmp_path: Path) -> None:
    # A recipe's text is longer than what `head` reads and shorter than a pipe holds, so a closed end is given at once.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "lowrank_clone", "recipes", "lrc-4b"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full", 2, "lrc: error: [Errno 28] No space left on device\n"),
    ],
)
def test_standard_output_that_can_t_be_written_to(end: str, code: int, says: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m lowrank_clone recipes {end}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, says)


def test_what_a_terminal_s_encoding_lacks_is_escaped(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["export", "\u00fc", "x"]) == 2
    sys.stderr.flush()
    assert sys.stderr.buffer.getvalue().startswith(b"lrc: error: `\\xfc` holds no recipe.yaml")  # type: ignore[attr-defined]
