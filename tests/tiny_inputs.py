"""What a run needs, tiny: a teacher with its tokenizer in a folder, and a folder of text."""

from pathlib import Path
from typing import Any

import yaml
from tiny import tiny_model
from tiny_tokenizer import tiny_tokenizer

VOCAB = 258


def save_teacher(folder: Path) -> Path:
    """A llama with the vocabulary of the tiny tokenizer, and that tokenizer with a chat template."""
    tiny_model("llama", vocab_size=VOCAB, bos_token_id=256, eos_token_id=257, pad_token_id=None).save_pretrained(folder)
    tiny_tokenizer(bos=False, eos=True, chat=True).save_pretrained(folder)
    return folder


def write_text(folder: Path) -> Path:
    """Twelve documents."""
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"Document {i} says that {i} and {i + 1} are {2 * i + 1}. " * 20)
    return folder


def write_recipe(teacher: Path, text: Path, folder: Path) -> Path:
    """A recipe of two steps in `folder`, whose run goes beside it."""
    tree: dict[str, Any] = {
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "student": {"hidden_size": 16, "dtype": "float32"},
        "method": {"temperature": 2.0},
        "data": {
            "sources": [{"path": str(text)}],
            "sequence_length": 32,
            "validation": 0.2,
            "max_validation_blocks": 4,
        },
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_steps": 2,
            "use_cpu": True,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
