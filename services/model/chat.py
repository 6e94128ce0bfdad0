"""Messages to token ids and back: prompts, what continues them, supervised pairs for the warm start, text of answers.

A message is `{"role": ..., "content": ...}`, an assistant message may carry `tool_calls` instead of content.
With `template=False` the contents alone are concatenated, each message tokenized for itself, so that the prompt of
a conversation is always a prefix of its supervised form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jinja2 import TemplateError

from .tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Supervised:
    """Token ids of a whole conversation and, per token, 1 where the assistant speaks (and is trained), else 0."""

    ids: list[int]
    mask: list[int]


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message], *, template: bool = True) -> list[int]:
    """Token ids after which the model is to answer.

    Raises ValueError when there is no message, the tokenizer has no chat template, or that refuses the messages.
    """
    if not messages:
        raise ValueError("a prompt needs at least one message")
    if not template:
        return [token for message in messages for token in _plain(tokenizer, message)]
    _require_template(tokenizer)
    encoded = _encode(tokenizer, messages, add_generation_prompt=True)
    return list(encoded["input_ids"])


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids behind those that the model has read and written, or, if `anew`, in place of them."""

    ids: list[int]
    anew: bool = False


def continued(
    tokenizer: Tokenizer, prefix: Sequence[int], messages: Sequence[Message], *, template: bool = True
) -> Continuation:
    """What the model is to read after it has written the end of `prefix` and others have answered.

    messages: the whole conversation; what comes after its last assistant message is new. What the model wrote is never
    tokenized again: as long as the rendered conversation begins with the text of `prefix`, only the rest of it is. If
    the template has rewritten earlier turns (it may drop their thoughts), the conversation is rendered `anew`.
    Raises ValueError as `prompt_ids` does.
    """
    if not template:
        spoken = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        new = messages[spoken[-1] + 1 :] if spoken else messages
        return Continuation([token for message in new for token in _plain(tokenizer, message)])
    _require_template(tokenizer)
    text, known = _render(tokenizer, messages), raw(tokenizer, prefix)
    if not text.startswith(known):
        return Continuation(prompt_ids(tokenizer, messages), anew=True)
    return Continuation(list(tokenizer.encode(text[len(known) :], add_special_tokens=False)))


def supervised(tokenizer: Tokenizer, messages: Sequence[Message], *, template: bool = True) -> Supervised:
    """Token ids and loss mask of a conversation with at least one assistant message.

    Assistant spans come from the template's `{% generation %}` marks or, where it has none, from rendering the
    conversation turn by turn. Without a template each assistant message is closed by the end-of-sequence token.
    Raises ValueError when no token would be trained or the template refuses the messages or rewrites earlier turns.
    """
    if not template:
        pairs = [_plain_turn(tokenizer, message) for message in messages]
        result = Supervised([i for p in pairs for i in p.ids], [m for p in pairs for m in p.mask])
    elif "generation %}" in _require_template(tokenizer):
        encoded = _encode(tokenizer, messages, return_assistant_tokens_mask=True)
        result = Supervised(list(encoded["input_ids"]), list(encoded["assistant_masks"]))
    else:
        result = _by_turns(tokenizer, messages)
    if not any(result.mask):
        raise ValueError("a supervised conversation needs at least one assistant message with content")
    return result


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of a completion without special tokens; bytes that are no UTF-8 become U+FFFD."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def raw(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of tokens as it was rendered, special tokens included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _render(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text after which the model is to answer."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from error


def _encode(tokenizer: Tokenizer, messages: Sequence[Message], **options: bool) -> Mapping[str, Any]:
    """The template's rendering, tokenized; templates raise for what they do not know, such as a role."""
    try:
        encoded: Mapping[str, Any] = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, **options
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from error
    return encoded


def _plain(tokenizer: Tokenizer, message: Message) -> list[int]:
    return list(tokenizer.encode(message.get("content") or "", add_special_tokens=False))


def _plain_turn(tokenizer: Tokenizer, message: Message) -> Supervised:
    ids = _plain(tokenizer, message)
    if message["role"] != "assistant":
        return Supervised(ids, [0] * len(ids))
    ids = [*ids, tokenizer.eos_token_id]
    return Supervised(ids, [1] * len(ids))


def _require_template(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template
    if not template:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no chat template: set apply_chat_template: false")
    return str(template)


def _by_turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> Supervised:
    """Spans by rendering: what a turn adds beyond its generation prompt is the assistant's."""

    def render(upto: int, generation: bool = False) -> str:
        turns = list(messages[:upto])
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation) if turns else ""
        )

    text = render(len(messages))
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            head, whole = render(index, generation=True), render(index + 1)
            if not (whole.startswith(head) and text.startswith(whole)):
                raise ValueError(
                    f"the chat template rewrites turn {index}: a loss mask cannot be derived; "
                    "add {% generation %} marks to the template or train on single-turn conversations"
                )
            spans.append((len(head), len(whole)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(a <= start < b for a, b in spans)) for start, _ in encoded["offset_mapping"]]
    return Supervised(list(encoded["input_ids"]), mask)
