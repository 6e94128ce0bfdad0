"""Verdicts as messages: whatever the user's functions return or raise, each fits, and so do many at once."""

import msgpack
import pytest

from midflight.messages.samples import Score, Scores
from midflight.messages.wire import MAX_BODY, dump
from midflight.services.reward.sandbox.program import WrongResult, tool_messages
from midflight.services.reward.service import _pieces, _spoken
from midflight.services.reward.verdict import Acted


@pytest.mark.parametrize(
    "score",
    [
        {"fault": "x" * 2000},
        {"fault": "\u4e0d" * 2000},
        {"rewards": {f"objective-{n:02}-".ljust(64, "\u4e0d"): 0.1 for n in range(32)}},
        {"state": "x" * 60_000},
        {"messages": [{"role": "tool", "content": ""}] * 64},
        {"rewards": {"reward": 1.0}},
    ],
    ids=["faults", "wide faults", "many objectives", "states", "empty messages", "numbers"],
)
def test_many_verdicts_are_cut_to_what_a_message_holds(score: dict[str, object]) -> None:
    """All are sent, in order, and no message is too large to be."""
    scores = [Score.model_validate({"id": n, "epoch": 1, **score}) for n in range(1000)]
    pieces = [Scores(scores=piece) for piece in _pieces(scores)]
    assert [one.id for piece in pieces for one in piece.scores] == list(range(1000))
    assert all(len(msgpack.packb(dump(piece))) <= MAX_BODY for piece in pieces)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "tool", "content": "\ud800"}, "half a surrogate pair"),
        ({"role": "\udfff", "content": ""}, "half a surrogate pair"),
        ({"role": "", "content": ""}, "the role ''"),
        ({"role": "r" * 65, "content": ""}, "1 to 64 characters"),
    ],
)
def test_what_is_no_text_is_the_programs_fault(message: dict[str, str], why: str) -> None:
    """Told where the function returns it."""
    with pytest.raises(WrongResult, match=why):
        tool_messages([message])


def test_a_state_that_is_no_text_refuses_the_sample() -> None:
    """It could not be sent; one in any other writing is."""
    said = [{"role": "tool", "content": "ok"}]
    assert "half a surrogate pair" in str(_spoken(3, 1, Acted(said, {"key": "\ud800"}, 0.1)).fault)
    assert _spoken(3, 1, Acted(said, {"key": "\u4e0d"}, 0.1)).state == '{"key": "\u4e0d"}'
