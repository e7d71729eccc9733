"""Documents to ids: exactly one bos and one eos, special tokens as text, the assistant's tokens, fingerprints."""

import itertools
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizer as tiny
import xxhash
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from lowrank_clone.data.config import SourceConfig
from lowrank_clone.data.tokenise import Encoded, Tokeniser
from lowrank_clone.data.tokenizer import fingerprint, template_fingerprint
from lowrank_clone.errors import InputError

BOS, EOS = 256, 257
HELLO = [{"role": "user", "content": "hi"}]


@dataclass
class Given:
    """A document as a reader gives it."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    error: str | None = None
    place: str = "a.jsonl line 1"


def encode(tokenizer: Any, *documents: Given, **source: Any) -> list[Encoded]:
    return Tokeniser(tokenizer, SourceConfig("a.jsonl", **source), 300).encode(list(documents))


def bytes_of(text: str) -> list[int]:
    """The tiny tokenizer's ids, one for each byte."""
    return tiny.tiny_tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize(("bos", "add_eos"), list(itertools.product([False, True], repeat=2)))
def test_one_bos_and_one_eos_whatever_the_tokenizer_adds(bos: bool, add_eos: bool) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos, add_eos=add_eos)
    start = [BOS] * bos
    assert encode(tokenizer, Given("ab"))[0].ids.tolist() == [*start, *bytes_of("ab"), EOS]
    spelt = encode(tokenizer, Given("<s>ab</s>"))[0]  # as text, these are neither bos nor eos
    assert spelt.ids.tolist() == [*start, *bytes_of("<s>ab</s>"), EOS]
    assert spelt.spelt
    for text in ("<s>ab</s>", "<s><s>ab</s></s>"):
        parsed = encode(tokenizer, Given(text), special_tokens="parse")[0]
        assert parsed.ids.tolist() == [BOS, *bytes_of("ab"), EOS]
        assert not parsed.spelt
    parsed = encode(tokenizer, Given("a<s>b</s>c"), special_tokens="parse")[0]
    assert parsed.ids.tolist() == [*start, *bytes_of("a"), BOS, *bytes_of("b"), EOS, *bytes_of("c"), EOS]


@pytest.mark.parametrize(("bos", "add_eos"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("begin", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
@pytest.mark.parametrize("end", ["", "{{ eos_token }}", "{{ eos_token }}\n", "{{ eos_token }}{{ eos_token }}"])
def test_one_bos_and_one_eos_whatever_the_template_writes(bos: bool, add_eos: bool, begin: str, end: str) -> None:
    template = begin + "{% for m in messages %}{{ m['content'] }}{% endfor %}" + end + "{{ '' }}"
    tokenizer = tiny.tiny_tokenizer(bos=bos, add_eos=add_eos, chat=template)
    ids = encode(tokenizer, Given(messages=HELLO), chat_column="chat")[0].ids.tolist()
    newline = bytes_of("\n") if end.endswith("\n") else []
    assert ids == [*[BOS] * (bos or begin != ""), *bytes_of("hi"), EOS, *newline]


def test_blank_and_bad_rows_have_no_ids() -> None:
    rows = encode(tiny.tiny_tokenizer(), Given(" \n"), Given("x"), Given(None, error="bad"), Given(""))
    assert [len(row.ids) for row in rows] == [0, 2, 0, 0]
    assert [row.error for row in rows] == [None, None, "bad", None]
    assert rows[1].hash == xxhash.xxh3_64_intdigest(b"x")
    assert rows[1].masked is None


def test_the_template_refuses_a_row() -> None:
    template = "{{ raise_exception('no tools') if messages[0]['role'] == 'tool' else messages[0]['content'] }}"
    tokenizer = tiny.tiny_tokenizer(chat=template)
    rows = encode(
        tokenizer,
        Given(messages=[{"role": "tool", "content": "x"}], place="c.jsonl line 7"),
        Given(messages=HELLO),
        Given(messages=[{"role": "user", "content": " "}]),
        chat_column="chat",
    )
    assert "c.jsonl line 7: the chat template refuses it (TemplateError: no tools)" in (rows[0].error or "")
    assert rows[1].ids.tolist() == [*bytes_of("hi"), EOS]
    assert "it makes no text of it" in (rows[2].error or "")
    assert rows[1].hash == xxhash.xxh3_64_intdigest(b"hi")  # of the rendered text


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_ids_take_two_bytes_where_they_can(vocab_size: int, dtype: Any) -> None:
    tokeniser = Tokeniser(tiny.tiny_tokenizer(), SourceConfig("a.txt"), vocab_size)
    assert tokeniser.encode([Given("x")])[0].ids.dtype == dtype == tokeniser.dtype


def test_an_id_beyond_the_vocabulary() -> None:
    with pytest.raises(InputError, match="beyond the model's embedding of 100 rows"):
        Tokeniser(tiny.tiny_tokenizer(), SourceConfig("a.txt"), 100).encode([Given("é")])


def test_what_was_set_on_the_tokenizer_cuts_nothing() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    tokenizer.model_max_length = 2
    assert encode(tokenizer, Given("a longer text"))[0].ids.tolist() == [*bytes_of("a longer text"), EOS]
    tokeniser = pickle.loads(pickle.dumps(Tokeniser(tokenizer, SourceConfig("a.txt"), 300)))
    assert tokeniser.encode([Given("ab")])[0].ids.tolist() == [*bytes_of("ab"), EOS]


def test_a_tokenizer_without_a_backend() -> None:
    tokenizer = ByT5Tokenizer()
    tokeniser = Tokeniser(tokenizer, SourceConfig("a.txt"), 400)
    ids = tokeniser.encode([Given("hé</s>")])[0].ids.tolist()
    assert ids == [byte + 3 for byte in "hé</s>".encode()] + [tokenizer.eos_token_id]
    assert fingerprint(tokenizer) == fingerprint(ByT5Tokenizer()) != fingerprint(ByT5Tokenizer(extra_ids=20))
    with pytest.raises(InputError, match="loss_on: got assistant, and `ByT5Tokenizer` does not say"):
        Tokeniser(tokenizer, SourceConfig("a.jsonl", chat_column="c", loss_on="assistant"), 400)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words as tokens, special tokens among them: their names become the tokens whatever one asks for."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_that_cannot_keep_names_as_text() -> None:
    good, bad, unknown = encode(word_tokenizer(), Given("a a"), Given("a </s> a"), Given("a <unk> b"))
    assert good.ids.tolist() == [2, 2, 1]
    assert "it spells `</s>` out, which this tokenizer can't keep as text" in (bad.error or "")
    assert unknown.ids.tolist() == [2, 0, 0, 1]


def test_many_documents_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank_clone.data.tokenise._CHARACTERS", 10)
    texts = ["abc", "x" * 30, "", "defg", "hij", "k" * 10, "l"]
    rows = encode(tiny.tiny_tokenizer(), *map(Given, texts))
    assert [row.ids.tolist() for row in rows] == [[*bytes_of(t), EOS] if t else [] for t in texts]


def test_fingerprints(tmp_path: Path) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=True, chat=True)
    first, template = fingerprint(tokenizer), template_fingerprint(tokenizer)
    encode(tokenizer, Given("x"))  # work leaves it what it was
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.save_pretrained(tmp_path / "t")
    again = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert (fingerprint(again), template_fingerprint(again)) == (first, template)
    assert fingerprint(tiny.tiny_tokenizer()) != first  # it adds no bos
    assert fingerprint(tiny.tiny_tokenizer(bos=True, add_eos=True)) == first  # documents get one eos anyway
    assert fingerprint(word_tokenizer()) != first
    assert template_fingerprint(tiny.tiny_tokenizer()) == "none"
    assert template_fingerprint(tiny.tiny_tokenizer(chat="{{ messages }}")) != template
    tokenizer.chat_template = {"default": tiny.CHAT_TEMPLATE, "tool_use": "x"}
    assert template_fingerprint(tokenizer) == template
    tokenizer.chat_template = {"rag": "x", "tool_use": "x"}
    with pytest.raises(InputError, match="the chat templates rag, tool_use, expected one called `default`"):
        template_fingerprint(tokenizer)


def test_what_the_assistant_says_is_what_is_learned() -> None:
    template = "{% for m in messages %}<s>{{ m['role'][0] }}{{ m['content'] }}</s>\n{% endfor %}"
    tokenizer = tiny.tiny_tokenizer(chat=template)
    chat = [*HELLO, {"role": "assistant", "content": "é no"}, *HELLO]
    row = encode(tokenizer, Given(messages=chat), chat_column="c", loss_on="assistant")[0]
    learned = np.ones(len(row.ids), bool)
    assert row.masked is not None
    for start, end in row.masked:
        learned[start:end] = False
    assert row.ids[learned].tolist() == [*bytes_of("é no"), EOS]
    assert row.ids.tolist()[:3] == [BOS, *bytes_of("uh")]
    everything = encode(tokenizer, Given(messages=chat), chat_column="c")[0]
    assert everything.masked is None and everything.ids.tolist() == row.ids.tolist()


def test_a_bos_of_the_tokenizer_moves_the_spans() -> None:
    template = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }};{% endfor %}"
    tokenizer = tiny.tiny_tokenizer(bos=True, chat=template)
    chat = [*HELLO, {"role": "assistant", "content": "yes"}]
    row = encode(tokenizer, Given(messages=chat), chat_column="c", loss_on="assistant")[0]
    # The end belongs to the assistant, who has the last word.
    assert row.ids.tolist() == [BOS, *bytes_of("uhi;ayes;"), EOS]
    assert row.masked is not None and row.masked.tolist() == [[0, 6]]
