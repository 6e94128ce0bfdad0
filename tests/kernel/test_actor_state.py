"""State hand-over as messages: what one actor exports another goes on from, or refuses by name."""

from typing import Any

from support.sim import SimBus

from midflight.kernel.actor import Actor
from midflight.messages.base import Message
from midflight.messages.control import Done, Refused, State, StateGet
from midflight.messages.memory import Network
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Sealer, decode, dump


class Counter(Actor):
    """Counts; hands its count over."""

    count = 0

    def export_state(self) -> tuple[str, dict[str, Any]]:
        return "counter/1", {"count": self.count}

    def import_state(self, schema: str, state: dict[str, Any]) -> None:
        if schema != "counter/1":
            raise ValueError(f"a counter goes on from counter/1, not from {schema}")
        self.count = state["count"]


class Tape(SimBus):
    """Keeps what is sent."""

    sent: list[list[bytes]]

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(frames)
        return True


def ask(actor: Actor, message: Message) -> Message:
    """Put a message to an actor; -> its answer."""
    assert isinstance(actor.bus, Tape)
    actor.bus.sent = []
    actor.deliver("ctl", Incoming("", Sealer("kernel#1").seal(message.KIND, dump(message))[1]))
    (frames,) = actor.bus.sent
    return decode(frames).message


def counter() -> Counter:
    return Counter("counter#1", Tape(Network(0, {"ctl": "kernel#0"}), "counter#1"))


def test_state_goes_from_one_actor_to_the_next() -> None:
    """Exported, imported, exported again: the same."""
    old, new = counter(), counter()
    old.count = 41
    state = ask(old, StateGet())
    assert isinstance(state, State)
    assert isinstance(ask(new, state), Done)
    assert new.count == 41
    assert ask(new, StateGet()) == state


def test_foreign_and_damaged_state_is_refused() -> None:
    """Another schema, text that is no JSON, a field that is missing: refused with the reason, nothing changed."""
    actor = counter()
    for schema, text in (("other/1", "{}"), ("counter/1", "{oops"), ("counter/1", "{}")):
        answer = ask(actor, State(schema_name=schema, json_text=text))
        assert isinstance(answer, Refused)
        assert answer.code == "state"
    assert actor.count == 0


def test_an_actor_without_state_says_so() -> None:
    """Nothing to export, and nothing to go on from."""
    bare = Actor("bare#1", Tape(Network(0, {"ctl": "kernel#0"}), "bare#1"))
    assert ask(bare, StateGet()) == State(schema_name="", json_text="{}")
    refused = ask(bare, State(schema_name="counter/1", json_text="{}"))
    assert isinstance(refused, Refused)
    assert "bare#1 takes no state" in refused.why
