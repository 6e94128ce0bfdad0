"""What every controller does with the stream, without a kernel: when it decides, from what, and with which memory."""

import json
from typing import Any

import pytest
from support.steering_world import settings_of

from midflight.messages.events import Event, Post
from midflight.messages.knobs import KnobGranted, KnobSet
from midflight.messages.wire import decode
from midflight.services.controllers.kl.config import KlConfig
from midflight.services.controllers.kl.service import Kl


class Outbox:
    """A bus that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def now(self) -> float:
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(decode(frames).message)
        return True

    def decisions(self) -> list[dict[str, Any]]:
        """Bodies of the decisions so far."""
        return [one.body for one in self.sent if isinstance(one, Post) and one.topic == "controller"]

    def sets(self) -> list[KnobSet]:
        """Values that were sent to the kernel."""
        return [one for one in self.sent if isinstance(one, KnobSet)]


class Stage:
    """One controller and its stream."""

    def __init__(self, identity: str = "kl#2", **config: Any) -> None:
        self.bus = Outbox()
        self.one = Kl(identity, self.bus, settings_of(identity, KlConfig(target_kl=0.1, min_coef=0.0, **config)))
        self.seq = 0

    def say(self, topic: str, source: str = "kernel", step: int | None = None, **body: Any) -> None:
        """The next event."""
        self.seq += 1
        self.one.take(Event(seq=self.seq, stream="s", ns=0, source=source, topic=topic, step=step, body=body))

    def metrics(self, step: int, kl: float = 0.2) -> None:
        """A training step."""
        self.say("metrics", "learner#1", step, kl=kl)

    def grant(self, epoch: int = 1) -> None:
        """It has the knob."""
        self.say("knob.granted", knob="kl.coef", owner=self.one.identity, epoch=epoch)
        granted = KnobGranted(knob="kl.coef", epoch=epoch, value=0.2, version=1)
        self.one._on_granted(granted, None)  # type: ignore[arg-type]


def past(source: str, step: int, coef: float, standing: str = "active", schema: str = "kl/1") -> dict[str, Any]:
    """A decision that was made before."""
    state: dict[str, Any] = {
        "coef": coef,
        "e1": None,
        "e2": None,
        "mean": None,
        "step": step,
        "nonfinite": 0,
        "history": [],
    }
    body = {"slot": "kl", "standing": standing, "schema": schema, "at_step": step, "state": json.dumps(state)}
    return {"topic": "controller", "source": source, "step": step, **body}


def test_old_metrics_are_not_decided() -> None:
    """What came before it was live is memory at most."""
    stage = Stage()
    stage.metrics(1)
    assert stage.bus.decisions() == []
    stage.one.go_live()
    stage.metrics(2)
    assert [body["at_step"] for body in stage.bus.decisions()] == [2]


@pytest.mark.parametrize(
    ("before", "coef"),
    [
        ([past("kl#1", 7, 0.5)], 0.5),
        ([past("pid#9", 7, 0.5)], 0.5),
        ([past("kl#1", 7, 0.5), past("pid#9", 7, 0.9)], 0.5),
        ([past("kl#1", 3, 0.5), past("pid#9", 7, 0.9)], 0.9),
        ([past("pid#9", 7, 0.9, standing="shadow")], 0.2),
        ([past("bang#9", 7, 0.9, schema="bang/1")], 0.2),
    ],
    ids=["own", "active", "own before the active one", "own, too old", "another's shadow", "another schema"],
)
def test_whose_state_it_goes_on_from(before: list[dict[str, Any]], coef: float) -> None:
    """Its own name's newest, unless whoever steered is further; never a state it does not speak."""
    stage = Stage()
    for event in before:
        stage.say(**event)
    stage.one.go_live()
    stage.metrics(8)
    assert stage.bus.decisions()[0]["value/kl.coef"] == pytest.approx(1.03 * coef)


def test_without_power_it_begins_from_the_value_in_force() -> None:
    """Each time anew, so that it does not drift; nothing is set."""
    stage = Stage()
    stage.one.go_live()
    stage.say("knob", knob="kl.coef", value=0.4, author="pid#9", version=3)
    for step in range(1, 6):
        stage.metrics(step)
    assert [body["value/kl.coef"] for body in stage.bus.decisions()] == pytest.approx([0.412] * 5)
    assert {body["standing"] for body in stage.bus.decisions()} == {"shadow"}
    assert stage.bus.sets() == []


def test_with_power_it_goes_on_from_its_own() -> None:
    """What it set itself comes back on the stream and changes nothing."""
    stage = Stage()
    stage.one.go_live()
    stage.grant()
    for step in range(1, 4):
        stage.metrics(step)
        stage.say("knob", knob="kl.coef", value=stage.bus.decisions()[-1]["value/kl.coef"], author="kl#2", version=step)
    values = [0.2 * 1.03**n for n in (1, 2, 3)]
    assert [one.value for one in stage.bus.sets()] == pytest.approx(values)
    assert {one.epoch for one in stage.bus.sets()} == {1}


def test_held_by_a_person_its_own_last_value_does_not_run_away() -> None:
    """Nobody sets anything meanwhile: it decides from what is in force, not from what it would have done."""
    stage = Stage()
    stage.one.go_live()
    stage.grant()
    stage.metrics(1)
    stage.say("knob", knob="kl.coef", value=0.206, author="kl#2", version=1)
    stage.say("knob.granted", knob="kl.coef", owner="operator", epoch=2)
    for step in range(2, 9):
        stage.metrics(step)
    assert stage.bus.decisions()[-1]["value/kl.coef"] == pytest.approx(0.206 * 1.03)


def test_granted_it_sets_its_newest_decision() -> None:
    """There is no step without a value of whoever rules."""
    stage = Stage()
    stage.one.go_live()
    stage.metrics(5)
    assert stage.bus.sets() == []
    stage.grant(4)
    (sent,) = stage.bus.sets()
    assert (sent.value, sent.epoch) == (stage.bus.decisions()[-1]["value/kl.coef"], 4)


def test_overtaken_it_sets_nothing_more() -> None:
    """The stream tells, before the refusal of its epoch would."""
    stage = Stage()
    stage.one.go_live()
    stage.grant(1)
    stage.say("knob.granted", knob="kl.coef", owner="pid#9", epoch=2)
    stage.metrics(1)
    assert stage.bus.sets() == []
    assert stage.bus.decisions()[-1]["standing"] == "shadow"


def test_a_parameter_changes_with_the_memory_kept() -> None:
    """One that does not fit is refused, and nothing has changed."""
    stage = Stage()
    stage.one.go_live()
    stage.grant()
    stage.metrics(1)
    assert stage.one.apply_knob("kl.controller_type", "linear") == 2
    assert stage.one.law.coef == pytest.approx(0.206)
    stage.metrics(2)
    assert stage.bus.decisions()[-1]["value/kl.coef"] == pytest.approx(0.206 * 1.5)
    stage.one.apply_knob("kl.max_coef", 0.1)
    assert stage.one.law.coef == 0.1
    with pytest.raises(ValueError, match=r"must lie between min_coef 0\.5 and max_coef 0\.1"):
        stage.one.apply_knob("kl.min_coef", 0.5)
    assert stage.one.config.min_coef == 0.0
    assert [
        one.body["field"] for one in stage.bus.sent if isinstance(one, Post) and one.topic == "controller.param"
    ] == ["controller_type", "max_coef"]


def test_paused_it_decides_nothing() -> None:
    """And goes on where it stopped."""
    stage = Stage()
    stage.one.go_live()
    stage.one.paused = True
    stage.metrics(1)
    stage.one.paused = False
    stage.metrics(2)
    assert [body["at_step"] for body in stage.bus.decisions()] == [2]
