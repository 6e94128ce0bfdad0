"""Replay over journals as crashes leave them: steps trained twice, controllers that left, beginnings that are gone."""

from functools import partial
from typing import Any

import pytest
from support.steering_world import settings_of

from midflight.services.controllers.kl.config import KlConfig
from midflight.services.controllers.kl.service import Kl
from midflight.services.controllers.replay import FROM_OUTSIDE, Tape, incarnations, replay, verify

CONFIG = KlConfig(target_kl=0.1, min_coef=0.0)
Record = dict[str, Any]


class Journal:
    """Events as a run would journal them, with a real controller's decisions among them."""

    def __init__(self) -> None:
        self.events: list[Record] = []
        self.tape = Tape()
        self.one = Kl("kl#1", self.tape, settings_of("kl#1", CONFIG))
        self.one.go_live()
        self._hear()

    def say(self, topic: str, source: str = "kernel", step: int | None = None, **body: Any) -> None:
        """One event, which the controller hears."""
        self._keep(topic, source, step, body)
        self.one.take(self._message())
        self._hear()

    def _message(self) -> Any:
        from midflight.messages.events import Event

        return Event.model_construct(**self.events[-1], stream="")

    def _keep(self, topic: str, source: str, step: int | None, body: Record) -> None:
        seq = len(self.events) + 1
        self.events.append({"seq": seq, "ns": 0, "source": source, "topic": topic, "step": step, "body": body})

    def _hear(self) -> None:
        """What it posts is journaled too."""
        posts, self.tape._posts = self.tape._posts, []
        for post in posts:
            self._keep(post.topic, "kl#1", post.step, dict(post.body))


def made(identity: str, bus: Tape, cls: type[Kl] = Kl) -> Kl:
    """The controller, without a run."""
    return cls(identity, bus, settings_of(identity, CONFIG))


def test_a_step_that_was_trained_twice_is_decided_twice() -> None:
    """A learner that died trains some steps again, with other measurements."""
    journal = Journal()
    for step, kl in ((1, 0.2), (2, 0.2), (3, 0.05), (2, 0.05), (3, 0.2), (4, 0.2)):
        journal.say("metrics", "learner#1", step, kl=kl)
    (one,) = incarnations(journal.events)
    verdict = verify(lambda: journal.events, one, made)
    assert (verdict.decisions, verdict.equal, verdict.first) == (6, 6, "")


class Short(Kl):
    """Ends when it is asked for more than three decisions."""

    asked = 0

    def decide(self, measured: Any, step: int) -> Any:
        self.asked += 1
        assert self.asked <= 3, "asked for a decision that it never made"
        return super().decide(measured, step)


def test_it_ends_where_the_controller_ended() -> None:
    """What came after its last decision it never heard."""
    journal = Journal()
    for step in (1, 2, 3):
        journal.say("metrics", "learner#1", step, kl=0.2)
    (one,) = incarnations(journal.events)
    for step in range(4, 9):
        journal.say("metrics", "learner#1", step, kl=0.2)
        journal.events.pop()
    verdict = verify(lambda: journal.events, one, partial(made, cls=Short))
    assert verdict.same, verdict


def test_a_difference_is_named() -> None:
    """The first one, with what was decided and what comes out now."""
    journal = Journal()
    for step in (1, 2, 3):
        journal.say("metrics", "learner#1", step, kl=0.2)
    decided = [event for event in journal.events if event["topic"] == "controller"]
    decided[1]["body"]["value/kl.coef"] = 0.5
    (one,) = incarnations(journal.events)
    verdict = verify(lambda: journal.events, one, made)
    assert (verdict.same, verdict.equal) == (False, 2)
    assert verdict.first.startswith("step 2: decided {'kl.coef': 0.5}, replayed {'kl.coef': 0.21")


@pytest.mark.parametrize("from_step", [0, 3])
def test_another_controller_begins_from_the_value_in_force(from_step: int) -> None:
    """Each time anew; it may begin later, and knows what was in force then."""
    journal = Journal()
    for step in range(1, 6):
        journal.say("knob", knob="kl.coef", value=float(step), author="kl#1", version=step)
        journal.say("metrics", "learner#1", step, kl=0.2)
    decisions = list(replay(journal.events, made, from_step=from_step))
    steps = range(max(1, from_step), 6)
    assert [(one.step, one.values["kl.coef"]) for one in decisions] == [(n, 1.03 * n) for n in steps]
    assert FROM_OUTSIDE == "replay#1"


def test_without_its_beginning_it_is_left_out() -> None:
    """The oldest files of a journal go: nothing can be said about what began in them."""
    journal = Journal()
    journal.say("metrics", "learner#1", 1, kl=0.2)
    assert incarnations(journal.events[1:]) == []
