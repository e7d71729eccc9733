"""`lrc data`: makes, uses again, verifies, shares, submits; a mistake is one line and exit code 2."""

import json
import sys
from pathlib import Path

import pytest
from tiny_inputs import save_teacher
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.cli.main import main
from lowrank_clone.data.readers import parts as cutting
from lowrank_clone.data.sharding import job as jobs

DOCUMENTS = 40


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "split_source", lambda source: cutting.split_source(source, 1000))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": f"{i} " + "word " * (i % 30)}) for i in range(DOCUMENTS)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows) + "\n")
    save_teacher(tmp_path / "teacher")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"teacher: {{model: {tmp_path}/teacher}}\nstudent: {{hidden_size: 16}}\n"
        f"data: {{sources: [{tmp_path}/text.jsonl], sequence_length: 16, shards: {tmp_path}/shards}}\n"
    )
    return path


def lrc(*words: object) -> int:
    return main(["data", *map(str, words)])


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert lrc(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("lrc: error: ") and not any(line.startswith("lrc: ") for line in lines[:-1])
    return lines[-1]


def test_making_using_verifying(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "4 of 4 shards of" in error(capsys, recipe, "--verify") and not (tmp_path / "shards").exists()
    assert lrc(recipe, "--workers", 1) == 0
    out, err = capsys.readouterr()
    assert (
        f"text.jsonl: 3,0{30} tokens in {DOCUMENTS} documents, 4 shards" in out or "tokens in 40 documents, 4 sh" in out
    )
    assert "made 4 shards; 4 of 4 are in" in err
    assert lrc("--verify", recipe) == 0
    assert "All shards have their checksums" in capsys.readouterr().out
    assert lrc(recipe) == 0
    assert "using 4 shards of before, in" in (err := capsys.readouterr().err)
    folder = next((tmp_path / "shards").iterdir())
    ids = folder / "00002.ds"
    ids.write_bytes(ids.read_bytes()[:-2])
    assert "00002.ds has " in (said := error(capsys, recipe, "--verify")) and "`lrc data RECIPE` makes it again" in said
    assert lrc(recipe) == 0
    assert "00002.ds has" in (err := capsys.readouterr().err) and "made 1 shard; 4 of 4" in err
    path = tmp_path / "text.jsonl"
    path.write_text(path.read_text().replace("39 word", "39 Word"))
    assert f"{path} is not the text that was tokenised" in error(capsys, recipe, "--verify")


def test_another_tokenizer_or_template_is_refused_in_a_named_folder(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lrc(recipe, "--workers", 1) == 0
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    capsys.readouterr()
    said = error(capsys, recipe)
    assert "with the tokenizer" in said and "set data.shards to another folder" in said
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    assert lrc(recipe, "data.shards=null", "--workers", 1) == 2  # `word` has id 258, beyond the model's vocabulary
    assert "has id 258, beyond the model's embedding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--share", "3/2"], "--share: got '3/2', expected this machine's number and how many there are, as in 2/4"),
        (["--share", "0/2"], "--share: got '0/2'"),
        (["--share", "two"], "--share: got 'two'"),
        (["--workers", "0"], "--workers: got '0', expected a whole number of at least 1"),
        (["--workers", "-1"], "--workers"),
        (["--tasks", "3"], "--slurm and --tasks are for Slurm; add --executor slurm"),
        (["--slurm", "time=1"], "--slurm and --tasks are for Slurm; add --executor slurm"),
        (["--executor", "slurm", "--verify"], "slurm goes with none of --share, --verify and --workers"),
        (["--executor", "slurm", "--slurm", "time"], "--slurm: got 'time', expected an option of sbatch"),
        (["--executor", "slurm", "--slurm", "time=1 2"], "--slurm: got 'time=1 2', expected an option of sbatch"),
        (["--executor", "slurm"], "--slurm: no partition is given; expected `--slurm partition=...`"),
        (["--executor", "slurm", "--slurm", "partition=a", "--slurm", "time=1"], "there is no sbatch on this machine"),
        (["--executor", "ray"], "--executor: invalid choice: 'ray'"),
        (["--share", "1/2", "--verify"], "--verify goes with neither --share nor --workers"),
    ],
)
def test_mistakes(
    recipe: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert message in error(capsys, recipe, *words)


def test_shares_of_machines_complete_one_folder(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lrc(recipe, "--share", "2/2", "--workers", 1) == 0
    assert capsys.readouterr().out == "2 shards left to other machines.\n"
    assert lrc(recipe, "--share", "1/2", "--workers", 1) == 0
    assert capsys.readouterr().out == "All shards are complete.\n"
    assert lrc(recipe, f"data.shards={tmp_path}/whole", "--workers", 1) == 0
    shared, whole = (
        {path.name: path.read_bytes() for path in next((tmp_path / name).iterdir()).iterdir() if path.is_file()}
        for name in ("shards", "whole")
    )
    assert {k: v for k, v in shared.items() if k[0] != "."} == {k: v for k, v in whole.items() if k[0] != "."}


SBATCH = """#!/bin/bash
# Runs an array job's script at once, task after task, as Slurm would run it.
offset=0
for word in "$@"; do case "$word" in --export=*) offset=${word##*RUN_OFFSET=};; esac; script=$word; done
echo "$@" >> "$FAKE_SLURM/calls"; cat "$script" > "$FAKE_SLURM/script.$(wc -l < "$FAKE_SLURM/calls")"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
export SLURM_NODELIST=node1 SLURM_JOB_ID=77 RUN_OFFSET=$offset
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$script" >> "$FAKE_SLURM/output" 2>&1; done
echo "Submitted batch job 77"
"""


def test_slurm(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("scontrol", "#!/bin/bash\necho node1\n"),
        ("squeue", "#!/bin/bash\necho 77\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    options = ["--executor", "slurm", "--tasks", 2, "--slurm", "partition=cpu", "--slurm", "time=01:00:00"]
    assert lrc(recipe, *options) == 0
    err = capfd.readouterr().err
    assert "submitted Slurm's job 77, 2 tasks for 4 shards" in err and "Traceback" not in err and "INFO" not in err
    script = (tmp_path / "script.1").read_text()
    assert "#SBATCH --partition=cpu\n" in script and "#SBATCH --array=0-1\n" in script
    folder = next((tmp_path / "shards").iterdir())
    assert (folder / "manifest.json").exists(), (tmp_path / "output").read_text()
    assert lrc(recipe, "--verify") == 0
    (folder / "manifest.json").unlink()
    (folder / "00001.json").unlink()
    capfd.readouterr()
    assert lrc(recipe) == 2
    assert "Slurm's job 77 makes the shards in" in capfd.readouterr().err
    (tools / "squeue").write_text("#!/bin/bash\nexit 1\n")
    assert lrc(recipe, "--workers", 1) == 0
    assert "made 1 shard; 4 of 4" in capfd.readouterr().err


def test_what_is_not_read_is_said(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "text.jsonl").rename(tmp_path / "texts" / "text.jsonl")
    (tmp_path / "texts" / "README.md").write_text("About the texts.")
    assert lrc(recipe, "--workers", 1, f"data.sources=[{tmp_path}/texts]") == 0
    assert f"not read: 1 file of other kinds, first: {tmp_path}/texts/README.md" in capsys.readouterr().out
