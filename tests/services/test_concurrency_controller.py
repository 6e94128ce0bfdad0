"""The concurrency controller over a stream: whom it hears, when it decides, and that a replay decides the same."""

import random
from typing import Any

import pytest
from support.steering_world import settings_of

from midflight.messages.events import Event
from midflight.services.controllers.concurrency.config import ConcurrencyConfig
from midflight.services.controllers.concurrency.service import Concurrency
from midflight.services.controllers.replay import Tape, incarnations, verify
from midflight.services.rollout.config import RolloutConfig

CONFIG = ConcurrencyConfig()
Record = dict[str, Any]


def made(identity: str, bus: Tape) -> Concurrency:
    """The controller, without a run."""
    return Concurrency(identity, bus, settings_of(identity, CONFIG, "concurrency"))


class Stream:
    """A run's events, with a real controller's decisions among them."""

    def __init__(self) -> None:
        self.events: list[Record] = []
        self.tape = Tape()
        self.one = made("concurrency#1", self.tape)

    def say(self, topic: str, source: str, step: int | None = None, **body: Any) -> None:
        """One event, which the controller hears."""
        self._keep(topic, source, step, body)
        self.one.take(Event.model_construct(**self.events[-1], stream=""))
        self.one.follow.last = len(self.events)
        self.hear()

    def load(self, active: int, kv_use: float, queued: int = 0, slot: str = "rollout", limit: int = 64) -> None:
        """What a rollout tells."""
        told: Record = {
            "active": active,
            "kv_use": kv_use,
            "queued": queued,
            "slots": 128,
            "limit": limit,
            "slot": slot,
        }
        self.say("throughput", f"{slot}-0#1", tokens_per_s=1e3, busy=1.0, version=3, **told)

    def step(self, step: int) -> None:
        """A training step."""
        self.say("metrics", "learner#1", step, loss=0.1)

    def hear(self) -> None:
        """What it posts is journaled too, and comes back to it."""
        posts, self.tape._posts = self.tape._posts, []
        for post in posts:
            self.one.mail.settle(("event", post.key))
            self._keep(post.topic, "concurrency#1", post.step, dict(post.body))
            self.one.follow.last = len(self.events)

    def _keep(self, topic: str, source: str, step: int | None, body: Record) -> None:
        event = {"seq": len(self.events) + 1, "ns": 0, "source": source, "topic": topic, "step": step, "body": body}
        self.events.append(event)

    def decided(self) -> list[tuple[int, float]]:
        """(step, limit) of each decision."""
        bodies = [event["body"] for event in self.events if event["topic"] == "controller"]
        return [(body["at_step"], body["value/rollout.concurrency"]) for body in bodies]


def live() -> Stream:
    """One that decides."""
    stream = Stream()
    stream.one.go_live()
    stream.hear()
    return stream


def test_it_decides_by_the_worst_of_its_own_rollouts_once_a_step() -> None:
    """Two processes and two reports make one decision; other slots' rollouts and steps without a report none."""
    stream = live()
    stream.step(1)
    stream.load(64, 0.95, slot="other")
    stream.step(2)
    stream.load(64, 0.5)
    stream.load(64, 0.95)
    stream.load(64, 0.4)
    stream.step(3)
    stream.step(4)
    stream.load(44, 0.5)
    stream.step(5)
    assert stream.decided() == [(3, 44), (5, 46)]
    body = next(event["body"] for event in stream.events if event["topic"] == "controller")
    assert (body["active"], body["kv_use"], body["reason"]) == (
        64,
        0.95,
        "active 64, queued 0, kv_use 0.95 at step 3",
    )


def test_what_was_heard_before_a_step_that_it_did_not_decide_is_forgotten() -> None:
    """A successor begins with the load since the last step, not with that of the whole run."""
    stream = Stream()
    stream.load(64, 0.99)
    stream.step(1)
    stream.one.go_live()
    stream.load(64, 0.5)
    stream.step(2)
    assert stream.decided() == [(2, 66)]


def test_a_replay_decides_the_same() -> None:
    """Parameters, pauses and people's values in between; bit for bit."""
    rng, stream, limit = random.Random(3), live(), 64
    for step in range(1, 120):
        for _ in range(rng.randrange(3)):
            stream.load(
                min(limit, rng.choice([limit, 90])), rng.uniform(0.5, 1.0), rng.choice([0, 0, 0, 20]), limit=limit
            )
        if step == 40:
            stream.one.apply_knob("concurrency.decrease", 0.5)
        if step in (60, 70):
            stream.one.paused = step == 60
            stream.one.on_role()
        if step == 80:
            stream.say("knob", "operator", knob="rollout.concurrency", value=33, author="operator", version=9)
        stream.hear()
        stream.step(step)
        limit = int(stream.decided()[-1][1]) if stream.decided() else limit
    (one,) = incarnations(stream.events)
    verdict = verify(lambda: stream.events, one, made)
    assert verdict.decisions > 60
    assert (verdict.equal, verdict.first) == (verdict.decisions, "")
    assert len({value for _, value in stream.decided()}) > 10


def test_as_many_as_there_are_slots() -> None:
    """The knob of a rollout begins at its slots, and a knob that no rollout has is refused before anything starts."""
    assert RolloutConfig(slots=32).concurrency == 32
    assert RolloutConfig().concurrency == RolloutConfig().slots
    assert RolloutConfig(slots=32, concurrency=8).concurrency == 8
    others = {"gen-a": RolloutConfig()}
    assert list(ConcurrencyConfig(knob="gen_a.concurrency").conflicts(others)) == []
    ((field, why),) = ConcurrencyConfig().conflicts(others)
    assert (field, why) == ("knob", "no rollout has rollout.concurrency; there are gen_a.concurrency")
    with pytest.raises(ValueError, match=r"kv_low 0.9 must be less than kv_high 0.9"):
        ConcurrencyConfig(kv_low=0.9)
