"""Stop texts: a response ends with the token that completes one, whatever tokens it is made of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.learner_toys import tiny_lm

from midflight.services.model.chat import raw
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Completion, RefusedRequest, Request
from midflight.services.rollout.stopping import StopText

TOKENIZER = byte_tokenizer()
MERGED = byte_tokenizer()
MERGED.add_tokens(["ab", "b</", "tool", "aé"])
TEXTS = ("</tool_call>", "ab", "é", "ool")


@settings(deadline=None)
@given(st.lists(st.sampled_from([7, 107, 108, 118, 119, 122, 137, 203, *range(266, 270)]), max_size=24))
def test_a_window_finds_what_the_whole_text_has(tokens: list[int]) -> None:
    """Asked after every token, it says yes at the first whose text contains a stop."""
    stop = StopText(lambda ids: raw(MERGED, ids), TEXTS)
    for end in range(1, len(tokens) + 1):
        whole = any(text in raw(MERGED, tokens[:end]) for text in TEXTS)
        assert stop(tokens[:end]) == whole, (end, raw(MERGED, tokens[:end]))
        if whole:
            return


def generated(stop: tuple[str, ...], others: int = 3) -> list[Completion]:
    """A response with stop texts in slot 0, and others without beside it."""
    model = tiny_lm(5, torch.float32, vocab_size=266)
    engine = Engine(model, slots=others + 1, max_length=64, eos_ids=[1], decode=lambda ids: raw(TOKENIZER, ids))
    for n in range(others + 1):
        engine.add(Request(n, [3, 20 + n, 4], 40, 1.0, seed=n, stop=() if n else stop))
    done: list[Completion] = []
    while engine.active:
        done += engine.step()
    return sorted(done, key=lambda one: one.id)


def test_the_engine_stops_there_and_keeps_it() -> None:
    """The same tokens as without it, up to the one that completes it; nobody else's response changes."""
    free = generated(())
    text = raw(TOKENIZER, free[0].tokens)
    stop = next(text[at : at + 2] for at in range(6, len(text)) if text[at : at + 2].isascii())
    held = generated((stop, "never written"))
    assert [one.tokens for one in held[1:]] == [one.tokens for one in free[1:]]
    assert (held[0].stop_reason, free[0].stop_reason) == ("stop", "length")
    length = len(held[0].tokens)
    assert held[0].tokens == free[0].tokens[:length]
    assert held[0].logprobs == pytest.approx(free[0].logprobs[:length], abs=1e-5)
    assert stop in raw(TOKENIZER, held[0].tokens)
    assert stop not in raw(TOKENIZER, held[0].tokens[:-1])


def test_an_engine_that_cannot_read_tokens_says_so() -> None:
    engine = Engine(tiny_lm(5, torch.float32), slots=1, max_length=64)
    with pytest.raises(RefusedRequest, match="needs `decode`"):
        engine.add(Request(0, [3], 4, 1.0, 0, stop=("x",)))
