"""Tokenizers and chat: every id of a prompt and every bit of a loss mask is the one intended."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.services.model.chat import Supervised, decode, prompt_ids, supervised
from midflight.services.model.tokenizer import SPECIALS, byte_tokenizer, load_tokenizer

TOKENIZER = byte_tokenizer()
END, USER, ASSISTANT, TOOL, CALL, CALL_END = 1, 3, 4, 5, 6, 7


def text(string: str) -> list[int]:
    """Ids of plain text."""
    return list(TOKENIZER.encode(string, add_special_tokens=False))


def test_vocabulary() -> None:
    """The byte tokenizer has 256 byte ids after ten specials with fixed ids."""
    assert len(TOKENIZER) == 266
    assert [TOKENIZER.convert_tokens_to_ids(name) for name in SPECIALS] == list(range(10))
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (0, END, None)


@given(st.text().filter(lambda string: not any(name in string for name in SPECIALS)))
def test_any_text_round_trips(string: str) -> None:
    """One byte is one id and decoding gives the text back."""
    ids = text(string)
    assert len(ids) == len(string.encode())
    assert decode(TOKENIZER, ids) == string


def test_prompt_is_exact() -> None:
    """A prompt is `<|user|>...<|end|><|assistant|>`, nothing before and nothing after."""
    messages = [{"role": "user", "content": "hi é"}]
    assert prompt_ids(TOKENIZER, messages) == [USER, *text("hi é"), END, ASSISTANT]
    assert prompt_ids(TOKENIZER, messages, template=False) == text("hi é")


def test_loss_mask_is_exact() -> None:
    """All the assistant says is trained, its tool calls and end tokens included; nothing else is."""
    call = {"function": {"name": "get", "arguments": "ka"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "57"},
        {"role": "assistant", "content": "aé"},
    ]
    spans: list[tuple[int, list[int]]] = [
        (0, [USER, *text("q"), END, ASSISTANT]),
        (1, [CALL, *text("get ka"), CALL_END, END]),
        (0, [TOOL, *text("57"), END, ASSISTANT]),
        (1, [*text("aé"), END]),
    ]
    result = supervised(TOKENIZER, messages)
    assert result.ids == [token for _, ids in spans for token in ids]
    assert result.mask == [bit for bit, ids in spans for _ in ids]


@pytest.mark.parametrize("template", [True, False])
def test_prompt_is_prefix_of_supervised(template: bool) -> None:
    """Warm start and generation see the same ids before the answer."""
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    pair = supervised(TOKENIZER, messages, template=template)
    prompt = prompt_ids(TOKENIZER, messages[:1], template=template)
    assert pair == Supervised([*prompt, *text("ba"), END], [0] * len(prompt) + [1, 1, 1])


def test_mask_without_generation_marks() -> None:
    """A template without marks gives the same mask, found by rendering turn by turn."""
    plain = byte_tokenizer()
    plain.chat_template = plain.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    messages = [
        {"role": role, "content": content}
        for role, content in [("user", "a"), ("assistant", "bé"), ("user", "c"), ("assistant", "d")]
    ]
    assert supervised(plain, messages) == supervised(TOKENIZER, messages)


def test_rewriting_template_is_refused() -> None:
    """A template that drops earlier answers cannot silently give a wrong mask."""
    odd = byte_tokenizer()
    odd.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="rewrites turn 1"):
        supervised(odd, messages)


def test_errors_name_the_problem() -> None:
    """No answer, no template, no role, no tokenizer: each is one clear error."""
    with pytest.raises(ValueError, match="at least one assistant message"):
        supervised(TOKENIZER, [{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="at least one message"):
        prompt_ids(TOKENIZER, [])
    with pytest.raises(Exception, match="unknown role oracle"):
        prompt_ids(TOKENIZER, [{"role": "oracle", "content": "a"}])
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="apply_chat_template: false"):
        prompt_ids(bare, [{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="cannot load a tokenizer from '/nowhere'"):
        load_tokenizer("/nowhere")


def test_decode_skips_specials() -> None:
    """Text of a completion has no end token and survives cut UTF-8."""
    assert decode(TOKENIZER, [*text("ok"), END]) == "ok"
    assert decode(TOKENIZER, text("é")[:1]) == "\ufffd"
