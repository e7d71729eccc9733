"""Long texts cut for the tokenizer: the ids are those of the whole text, and a tokenizer that can't be cut is not."""

from dataclasses import dataclass
from typing import Any

import pytest
import tiny_tokenizer as tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lowrank_clone.data import long_texts, tokenise
from lowrank_clone.data.config import SourceConfig
from lowrank_clone.data.tokenise import Tokeniser

WORDS = "the quick brown fox, don't jump over 12 lazy dogs!\n\n  def f(x):\n    return x\nand  then some more words "


def trained(pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    backend.train_from_iterator([WORDS * 5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@dataclass
class Given:
    """A document as a reader gives it."""

    text: str
    messages: None = None
    error: None = None
    place: str = "a.txt"


TOKENIZERS = {
    "bytes": lambda: tiny.tiny_tokenizer(),
    "words": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "space before": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="always")),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", [WORDS * 200, "x" * 20_000, " ".join(["word"] * 4000), "\n" * 9000 + "end"])
def test_the_ids_are_those_of_the_whole_text(kind: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[kind]()
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for module in (long_texts, tokenise):
        monkeypatch.setattr(module, "SEGMENT", 1000)
    found = Tokeniser(tokenizer, SourceConfig("a.txt"), 1000).encode([Given(text)])[0]
    assert found.ids.tolist() == [*expected, tokenizer.eos_token_id]


def test_where_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "SEGMENT", 1000)
    tokenizer = TOKENIZERS["words"]()

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    parts = long_texts.segments(WORDS * 100, encode)
    assert "".join(parts) == WORDS * 100
    assert max(map(len, parts)) < 1300 and min(map(len, parts[:-1])) >= 1000
    assert long_texts.segments("x" * 5000, encode) == ["x" * 5000]
