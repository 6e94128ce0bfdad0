"""Tokenizers: one made here that needs no download, or any Hugging Face one.

`load_tokenizer("bytes")` is a byte-level BPE without merges: one byte is one token, so any string encodes and
nothing is unknown. The first ten ids are the specials below; byte ids follow in the order of the ByteLevel alphabet.
"""

from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

Tokenizer: TypeAlias = Any
"""A `transformers.PreTrainedTokenizerBase`; transformers publishes no types."""

SPECIALS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
)
"""Tokens of the byte tokenizer with a meaning; the id of each is its index."""
TEXT = SPECIALS[6:]
"""Those that are the model's own words: text of an answer shows them (as that of Qwen's tokenizers does)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}"
    "{{ message.get('content') or '' }}"
    "{% for call in message.get('tool_calls') or [] %}"
    "<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments'] }}</tool_call>"
    "{% endfor %}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ('system', 'user', 'tool') %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""`<|role|>content<|end|>` per message; `{% generation %}` marks what the assistant itself says."""


def byte_tokenizer() -> Tokenizer:
    """Build the byte tokenizer: 266 ids, pad 0, end of sequence 1, no beginning-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *alphabet))}
    raw = RawTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIALS[:6]))
    raw.add_tokens([AddedToken(name, special=False, normalized=False) for name in TEXT])
    tokenizer: Tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Return the byte tokenizer for `"bytes"`, else the tokenizer of a model directory or hub id.

    Raises ValueError, naming `name`, when nothing can be loaded from there.
    """
    if str(name) == "bytes":
        return byte_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load a tokenizer from {str(name)!r}: give 'bytes', a directory with tokenizer files "
            f"or a hub id ({str(error).splitlines()[0]})"
        ) from error
