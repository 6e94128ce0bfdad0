"""Numbers that are not finite: no message holds one, and no service ends for it."""

import math

from support.sim import SimBus

from midflight.kernel.actor import Actor
from midflight.messages.control import Heartbeat
from midflight.messages.events import Post
from midflight.messages.memory import Network
from midflight.messages.wire import decode


class Tape(SimBus):
    """Keeps what is sent."""

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent = frames
        return True


def test_what_is_not_finite_is_shown_as_a_word_and_left_out_of_events() -> None:
    """A heartbeat says `nan`; an event has the other numbers."""
    tape = Tape(Network(0, {"ctl": "kernel#0"}), "counter#1")
    actor = Actor("counter#1", tape)
    actor.stats = {"step": 7, "loss": math.nan, "rate": 0.5}
    actor.beat()
    beat = decode(tape.sent).message
    assert isinstance(beat, Heartbeat)
    assert beat.stats == {"step": 7, "loss": "nan", "rate": 0.5}
    actor.event("metrics", {"loss": math.inf, "tokens": 3.0, "what": "x"}, 7)
    post = decode(tape.sent).message
    assert isinstance(post, Post)
    assert post.body == {"tokens": 3.0, "what": "x"}
