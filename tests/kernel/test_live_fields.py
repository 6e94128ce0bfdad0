"""Live fields of a configuration: declared as knobs, changed as a whole, refused with a reason."""

from typing import Literal

import pytest
from pydantic import Field, model_validator
from support.sim import SimBus

from midflight.kernel.actor import Actor
from midflight.kernel.spec import Config, ServiceSpec, knob_prefix, live, live_knobs, with_live, with_values
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobApplied, KnobApply, KnobDeclaration
from midflight.messages.memory import Network
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Sealer, decode, dump


class Inner(Config):
    """A section."""

    every: int = Field(3, ge=1, description="How often.", json_schema_extra=live(1, 10, "steps", "next round"))


class Example(ServiceSpec):
    """Every type that a live field may have."""

    kind: str = "example"
    rate: float = Field(0.5, ge=0, description="A rate.", json_schema_extra=live(0.0, 1.0, "nats"))
    on: bool = Field(True, description="A switch.", json_schema_extra=live())
    mode: Literal["fast", "slow"] = Field("fast", description="A mode.", json_schema_extra=live())
    maybe: float | None = Field(None, gt=0, json_schema_extra=live(0.1, 1.0))
    still: int = Field(1, description="Read once.")
    inner: Inner = Inner()
    many: dict[str, Inner] = {}

    @model_validator(mode="after")
    def _slow_is_rare(self) -> "Example":
        if self.mode == "slow" and self.inner.every < 3:
            raise ValueError("slow goes with every 3 and more")
        return self


def test_live_fields_are_declared_with_what_they_say() -> None:
    """Type, bounds, unit, boundary and description; sections by dotted names; dashes of the slot become underscores."""
    found = {one.name: one for one in live_knobs(Example(many={"a": Inner(every=4)}), "my-slot")}
    assert list(found) == [
        "my_slot.rate", "my_slot.on", "my_slot.mode", "my_slot.inner.every", "my_slot.many.a.every",
    ]  # fmt: skip
    assert found["my_slot.rate"] == KnobDeclaration(
        name="my_slot.rate", kind="float", unit="nats", default=0.5, low=0.0, high=1.0, description="A rate."
    )
    assert (found["my_slot.on"].kind, found["my_slot.mode"].choices) == ("bool", ["fast", "slow"])
    every = found["my_slot.inner.every"]
    assert (every.kind, every.default, every.when) == ("int", 3, "next round")
    assert found["my_slot.many.a.every"].default == 4


def test_bounds_widen_to_the_configured_value() -> None:
    """What a topology says is never out of range; an optional field is a knob when it has a value."""
    found = {one.name: one for one in live_knobs(Example(rate=7.0, maybe=0.2), "x")}
    assert (found["x.rate"].low, found["x.rate"].high, found["x.rate"].default) == (0.0, 7.0, 7.0)
    assert (found["x.maybe"].kind, found["x.maybe"].default) == ("float", 0.2)
    assert with_live(Example(maybe=0.2), "maybe", 0.3).maybe == 0.3


def test_a_field_of_another_type_cannot_be_live() -> None:
    """A list is no knob: the author of the class is told."""

    class Wrong(Config):
        names: list[str] = Field([], json_schema_extra=live())

    with pytest.raises(TypeError, match=r"x\.names cannot be a knob"):
        live_knobs(Wrong(), "x")


def test_a_change_is_checked_as_a_whole() -> None:
    """Field rules and rules between fields; the old configuration stays as it was."""
    config = Example()
    assert with_live(config, "rate", 0.7).rate == 0.7
    assert with_live(config, "inner.every", 5).inner.every == 5
    assert with_live(Example(many={"a": Inner()}), "many.a.every", 5).many["a"].every == 5
    with pytest.raises(ValueError, match=r"^rate: Input should be greater than or equal to 0$"):
        with_live(config, "rate", -1.0)
    with pytest.raises(ValueError, match=r"^slow goes with every 3 and more$"):
        with_live(with_live(config, "inner.every", 2), "mode", "slow")
    assert with_values(config, {"mode": "slow", "inner.every": 9}).inner.every == 9
    assert config == Example()


class Tape(SimBus):
    """Keeps what is sent."""

    sent: list[list[bytes]]

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(frames)
        return True


class Steered(Actor):
    """Takes every value but 13, from step 4 on."""

    taken: list[Scalar]

    def apply_knob(self, name: str, value: Scalar) -> int:
        if value == 13:
            raise ValueError("thirteen is unlucky" + "!" * 900)
        self.taken.append(value)
        return 4


def test_a_value_that_cannot_be_used_is_refused_with_its_reason() -> None:
    """The refusal is repeated when asked again, and a newer value is used all the same."""
    actor = Steered("x#1", Tape(Network(0, {"ctl": "kernel#0"}), "x#1"))
    actor.taken = []

    def told(version: int, value: Scalar) -> tuple[int, int, str | None]:
        assert isinstance(actor.bus, Tape)
        actor.bus.sent = []
        message = KnobApply(knob="x.rate", value=value, version=version)
        actor.deliver("ctl", Incoming("", Sealer("kernel#1").seal(message.KIND, dump(message))[1]))
        (frames,) = actor.bus.sent
        answer = decode(frames).message
        assert isinstance(answer, KnobApplied)
        return answer.version, answer.step, answer.refused and answer.refused[:19]

    assert told(1, 1) == (1, 4, None)
    assert told(2, 13) == told(2, 13) == told(1, 1) == (2, 4, "thirteen is unlucky")
    assert told(3, 2) == (3, 4, None)
    assert actor.taken == [1, 2]


def test_a_prefix_is_a_legal_name() -> None:
    """Every slot name that a topology may have begins a knob."""
    assert knob_prefix("a-b_c1") == "a_b_c1."
