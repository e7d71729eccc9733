"""The README's Python and its recipe, as they stand there, on a tiny teacher."""

import re
from pathlib import Path

import pytest
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone import CloneModel
from lowrank_clone.cli.main import main
from lowrank_clone.recipe.load import load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks_of(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher and a corpus, as the reader of the README has them, and the working directory."""
    tiny_model("llama", vocab_size=264, max_position_embeddings=8192).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(chat=True).save_pretrained(tmp_path / "teacher")
    (tmp_path / "corpus").mkdir()
    for i in range(40):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"Document {i} counts to {i + 1}. " * 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs(here: Path) -> None:
    code = "\n".join(blocks_of("python"))
    small = {f'"{TEACHER}"': '"teacher"', "384": "16", "max_steps=100": 'max_steps=2, report_to="none", use_cpu=True'}
    for theirs, ours in small.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    recipe = f"""
teacher: {{model: {here}/teacher}}
student: {{hidden_size: 16}}
data: {{sources: corpus, sequence_length: 64}}
training: {{output_dir: runs/a, max_steps: 1, use_cpu: true}}
"""
    (here / "recipe.yaml").write_text(recipe)
    assert main(["train", "recipe.yaml"]) == 0
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    clone = names["clone"]
    assert isinstance(clone, CloneModel) and clone.plan.student_width == 16
    assert (here / "student" / "config.json").is_file()


def test_the_recipe_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks_of("yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert recipe.student.hidden_size == 384 and recipe.training.total_tokens == 10**9
