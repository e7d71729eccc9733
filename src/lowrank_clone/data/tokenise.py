"""Documents to token ids: `[bos] ids eos`, with bos only where the tokenizer itself adds it."""

import json
import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .check import keyed_sources
from .config import DataConfig, SourceConfig
from .read import error_reason

_LONGEST_CHAT = 16 * 2**20  # characters; a template that makes more of a few messages runs away


def check_tokenizer(config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that can't end documents, has ids beyond the model's, or lacks a template that is needed.

    Raises:
        InputError: In one line that says how to mend it.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("teacher.model: the tokenizer has no eos token; expected one, which ends documents")
    for key, source in keyed_sources(config):
        if source.chat_column and not tokenizer.chat_template:
            raise InputError(
                f"{key}.chat_column: is set but the tokenizer has no chat template; expected one; use text_column, or "
                "give the tokenizer a template"
            )
    check_ids(np.array([tokenizer.eos_token_id]), tokenizer, vocab_size)


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


def tokenise(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    source: SourceConfig,
    strict: bool,
    vocab_size: int,
) -> dict[str, list[Any]]:
    """`input_ids` of a batch of documents, empty for a blank or bad row; `spelt` where special tokens stand as text.

    What looks like a special token is read as one in chats, whose template writes them, and where the source says
    `special_tokens: parse`. There the text's own bos and eos are not doubled. Elsewhere it stays text.
    """
    chat = source.chat_column is not None
    special = chat or source.special_tokens == "parse"
    texts, errors = list(batch["text"]), list(batch["error"])
    for i, text in enumerate(texts):
        if chat and text:
            texts[i], errors[i] = _render(text, tokenizer, f"{source.path} document {indices[i]}")
        if errors[i] and (strict or batch["fatal"][i]):
            raise InputError(errors[i])
    rows = [np.empty(0, np.int32) for _ in texts]
    spelt = [False for _ in texts]
    if filled := [i for i, text in enumerate(texts) if text and text.strip()]:
        bos = [] if chat else bos_ids(tokenizer)  # a chat template writes its own
        eos, names = tokenizer.eos_token_id, _special_names(tokenizer)
        encoded = tokenizer(
            [texts[i] for i in filled],
            add_special_tokens=False,
            return_attention_mask=False,
            split_special_tokens=not special,
            verbose=False,  # of documents longer than the model takes, which are cut into blocks
        )
        for i, ids in zip(filled, encoded["input_ids"], strict=True):
            start = [] if special and ids[: len(bos)] == bos else bos
            ended = special and texts[i].rstrip().endswith(tokenizer.eos_token)  # most templates end a turn with eos
            rows[i] = np.array([*start, *ids] if ended else [*start, *ids, eos], np.int32)
            spelt[i] = not special and names is not None and names.search(texts[i]) is not None
            check_ids(rows[i], tokenizer, vocab_size)
    return {"input_ids": rows, "error": errors, "spelt": spelt}


def _render(text: str, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str | None, str | None]:
    """The chat as text, or the error if the template refuses it."""
    try:
        rendered = str(tokenizer.apply_chat_template(json.loads(text), tokenize=False))
        if rendered.strip() and len(rendered) <= _LONGEST_CHAT:
            return rendered, None
        reason = f"it makes {len(rendered):,} characters of it" if rendered.strip() else "it makes no text of it"
    except Exception as error:  # a template is a program, and may fail with anything
        reason = error_reason(error)
    return None, (
        f"chat_column: {place}: the chat template refuses it ({reason}); mend the row or the template, or set "
        "on_error: skip"
    )


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[bos]` if the tokenizer itself puts it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What special tokens look like in text."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(names)))) if names else None
