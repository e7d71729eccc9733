"""What is asked of a tokenizer: whether it fits, what it puts before a text, and what tells it from another one."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import InputError
from .check import keyed_sources
from .config import DataConfig

# What decides no id here: documents get their bos and eos from `tokenise`, whole, and are never decoded.
_INDIFFERENT = ("version", "truncation", "padding", "post_processor", "decoder")
_PROBE = "The 1st naïve café: 3.14 ≈ π;\n\tdef f(x):  return x**2\r\n東京 🙂 don't…"


def check_tokenizer(config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that can't end documents, has ids beyond the model's, or no template that the chats need.

    Raises:
        InputError: In one line that says how to mend it.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("teacher.model: the tokenizer has no eos token; expected one, which ends documents")
    for key, source in keyed_sources(config):
        if source.chat_column and chat_template(tokenizer) is None:
            raise InputError(
                f"{key}.chat_column: is set but the tokenizer has no chat template; expected one; use text_column, or "
                "give the tokenizer a template"
            )
    check_ids(np.array([tokenizer.eos_token_id, *bos_ids(tokenizer)]), tokenizer, vocab_size)
    from .trial import try_templates

    try_templates(config, tokenizer, vocab_size)


def check_ids(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse ids that the model's embedding has no row for.

    Raises:
        InputError: It names the token.
    """
    worst = int(ids.max())
    if worst >= vocab_size:
        raise InputError(
            f"teacher.model: token {tokenizer.convert_ids_to_tokens(worst)!r} has id {worst}, beyond the model's "
            f"embedding of {vocab_size} rows; expected the model's own tokenizer"
        )


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[bos]` if the tokenizer itself puts it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What special tokens look like in text."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(names)))) if names else None


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer is a call of its backend, with nothing done to the text before."""
    kind = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and (
        (kind.__call__, kind._encode_plus) == (PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus)
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits, the same wherever the same text gives the same ids, documents' bos and eos included.

    They are taken of the serialised state of the tokenizer's backend, so a tokenizer has the same ones wherever it is
    stored and whatever has been done with it before. A tokenizer without a backend is known by its files of vocabulary
    and the ids of a short text.
    """
    state: dict[str, Any] = {"before": bos_ids(tokenizer), "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        state["backend"] = {key: value for key, value in backend.items() if key not in _INDIFFERENT}
    else:
        state["files"] = _vocabulary_files(tokenizer)
        state["added"] = tokenizer.get_added_vocab()
    if not is_plain(tokenizer):
        state["class"] = type(tokenizer).__qualname__
        state["probe"] = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return _digest(state)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that chats are rendered by; None if there is none.

    Raises:
        InputError: There are several and none of them is the default one.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        if "default" not in templates:
            raise InputError(
                f"teacher.model: the tokenizer has the chat templates {', '.join(sorted(templates))}, expected one "
                "called `default`; give the tokenizer a default template"
            )
        return str(templates["default"])
    return templates


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits of the chat template and the special tokens that it may write; `none` without a template.

    Raises:
        InputError: There are several templates and no default one.
    """
    template = chat_template(tokenizer)
    return "none" if template is None else _digest([template, tokenizer.special_tokens_map])


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: Path(folder) / name for name in tokenizer.vocab_files_names.values()}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.exists()}


def _digest(state: Any) -> str:
    text = json.dumps(state, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
