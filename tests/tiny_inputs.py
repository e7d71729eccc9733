"""What a run needs, tiny: a teacher with its tokenizer in a folder, and a folder of text."""

from pathlib import Path

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
