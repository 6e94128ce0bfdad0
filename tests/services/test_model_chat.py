"""Tokenizers and chat: every id of a prompt and every bit of a loss mask is the one intended."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.services.model.chat import Continuation, Supervised, continued, decode, prompt_ids, supervised
from midflight.services.model.tokenizer import SPECIALS, byte_tokenizer, load_tokenizer

TOKENIZER = byte_tokenizer()
END, USER, ASSISTANT, TOOL, CALL, CALL_END, THINK, THINK_END = 1, *range(3, 10)


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
    assert decode(TOKENIZER, [USER, CALL, *text("get ka"), CALL_END, END]) == "<tool_call>get ka</tool_call>"


ASKED = [{"role": "user", "content": "q"}]
THINKS = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template that drops the thoughts of earlier turns, as those of reasoning models do."""


def conversation(sampled: list[int]) -> list[dict[str, str]]:
    """The model answered with `sampled`, and a tool with 57."""
    said = {"role": "assistant", "content": decode(TOKENIZER, sampled)}
    return [*ASKED, said, {"role": "tool", "content": "57"}]


@pytest.mark.parametrize(
    ("sampled", "more"),
    [
        pytest.param([CALL, *text("get ka"), CALL_END, END], [TOOL], id="closed by the model"),
        pytest.param([CALL, *text("get ka"), CALL_END], [END, TOOL], id="closed by a stop text"),
        pytest.param([*text("é")[:1], END], [TOOL], id="no UTF-8"),
        pytest.param([END], [TOOL], id="nothing said"),
    ],
)
def test_only_what_is_new_is_tokenized(sampled: list[int], more: list[int]) -> None:
    """Behind the very tokens that were sampled comes what the tools said, and the template's marks between."""
    prefix = [*prompt_ids(TOKENIZER, ASKED), *sampled]
    found = continued(TOKENIZER, prefix, conversation(sampled))
    assert found == Continuation([*more, *text("57"), END, ASSISTANT])


@given(st.lists(st.integers(10, 265), min_size=1, max_size=8))
def test_no_bytes_of_the_model_are_ever_changed(sampled: list[int]) -> None:
    """Whatever it writes, also where a tokenizer would have cut it otherwise or not have made it at all."""
    prefix = [*prompt_ids(TOKENIZER, ASKED), *sampled, END]
    assert not continued(TOKENIZER, prefix, conversation([*sampled, END])).anew


def test_a_tokenization_of_its_own_is_kept() -> None:
    """A tokenizer that merges would write `ab` in one token; the model wrote two, and two they stay."""
    merging = byte_tokenizer()
    merging.add_tokens(["ab"])
    prefix = [*prompt_ids(merging, ASKED), *text("ab"), END]
    assert continued(merging, prefix, conversation([*text("ab"), END])) == Continuation(
        [TOOL, *text("57"), END, ASSISTANT]
    )


def test_a_template_that_rewrites_earlier_turns_starts_anew() -> None:
    """What it made of the conversation is read instead; as long as it changed nothing, the prefix goes on."""
    odd = byte_tokenizer()
    odd.chat_template = THINKS
    first = [THINK, *text("hm"), THINK_END, *text("get ka"), END]
    prefix = [*prompt_ids(odd, ASKED), *first]
    anew = [USER, *text("q"), END, ASSISTANT, *text("get ka"), END, TOOL, *text("57"), END, ASSISTANT]
    messages = conversation(first)
    assert continued(odd, prefix, messages) == Continuation(anew, anew=True)
    second = [*text("57"), END]
    messages += [{"role": "assistant", "content": "57"}, {"role": "tool", "content": "8"}]
    assert continued(odd, [*anew, *second], messages) == Continuation([TOOL, *text("8"), END, ASSISTANT])


def test_words_of_the_template_in_the_models_mouth_start_anew() -> None:
    """A role mark that the model wrote is no text of its answer: the conversation is told without it."""
    prefix = [*prompt_ids(TOKENIZER, ASKED), USER, *text("x"), END]
    assert continued(TOKENIZER, prefix, conversation([USER, *text("x"), END])).anew


def test_without_a_template_new_messages_are_appended() -> None:
    """Base models: contents only, whatever the model wrote before."""
    messages = [*conversation(text("a")), {"role": "user", "content": "more"}]
    prefix = [*text("q"), *text("a")]
    assert continued(TOKENIZER, prefix, messages, template=False) == Continuation(text("57more"))


def test_a_role_that_the_template_does_not_know_is_named() -> None:
    """As in a prompt."""
    messages = [*ASKED, {"role": "assistant", "content": "a"}, {"role": "oracle", "content": "b"}]
    with pytest.raises(ValueError, match="unknown role oracle"):
        continued(TOKENIZER, prompt_ids(TOKENIZER, ASKED), messages)
