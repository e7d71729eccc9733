"""A byte-level tokenizer that needs no download: one token per byte, and special tokens after them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}{{ m['name'] if m['name'] is defined }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
)


def tiny_tokenizer(
    *, bos: bool = False, eos: bool = True, chat: bool | str = False, add_eos: bool = False
) -> PreTrainedTokenizerFast:
    """258 tokens: byte `b` is one token, then `<s>` (256) and `</s>` (257); with `bos`, `<s>` goes before a text.

    Args:
        eos: Whether there is an eos. chat: Whether there is a chat template, or which. add_eos: Whether the tokenizer
            itself puts `</s>` after a text.
    """
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    if bos or add_eos:
        single = f"{'<s> ' * bos}$A{' </s>' * add_eos}"
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 256), ("</s>", 257)]
        )
    special = {"bos_token": "<s>", **({"eos_token": "</s>"} if eos else {})}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = chat if isinstance(chat, str) else CHAT_TEMPLATE if chat else None
    return tokenizer
