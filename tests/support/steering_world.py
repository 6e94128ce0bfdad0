"""A learner that only posts metrics, real KL controllers and the real kernel, in one process on a virtual clock."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from midflight.kernel.actor import Actor, Attached
from midflight.kernel.settings import Settings
from midflight.kernel.spec import ServiceSpec
from midflight.messages.base import Message, Scalar
from midflight.messages.knobs import KnobDeclaration
from midflight.messages.live import SwapStart
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Received
from midflight.services.controllers.controller import Controller
from midflight.services.controllers.kl.config import KlConfig
from midflight.services.controllers.kl.service import Kl
from midflight.services.controllers.replay import Verdict, incarnations, verify
from support.sim import SimBus, World

STEP_S = 0.1
COEF = KnobDeclaration(
    name="kl.coef", kind="float", unit="loss per nat", default=0.2, low=0.0, high=100.0, description="weight of the KL"
)
CONFIGS = {
    "": KlConfig(target_kl=0.05),
    "pid": KlConfig(target_kl=0.05, controller_type="pid", min_coef=0.0),
    "sloth": KlConfig(target_kl=0.05),
    "broken": KlConfig(target_kl=0.05),
    "mute": KlConfig(target_kl=0.05),
    "hopeless": KlConfig(target_kl=0.05),
    "beyond": KlConfig(target_kl=0.05),
    "empty": KlConfig(target_kl=0.05),
    "nan": KlConfig(target_kl=0.05),
    "lost": KlConfig(target_kl=0.05, knob="kl.koef"),
}


class Metrics(Actor):
    """A training step every 0.1 s, whose KL answers the coefficient."""

    def __init__(self, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.coef, self.step, self._next = 0.2, 0, 0.0
        self.noise = random.Random(7)
        self.used: list[float] = []

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        return (COEF,)

    def apply_knob(self, name: str, value: Scalar) -> int:
        self.coef = float(str(value))
        return self.step + 1

    def work(self, now: float) -> bool:
        if now >= self._next:
            self._next = now + STEP_S
            self.step += 1
            self.progress += 1
            self.used.append(self.coef)
            self.event("metrics", {"kl": self.noise.uniform(0.5, 1.5) * 0.02 / (0.1 + self.coef)}, self.step)
        return False


class Sloth(Kl):
    """Loads, says that it is ready, and never decides."""

    def decide(self, measured: Any, step: int) -> Any:
        raise ValueError("a broken law")


class Silent(Kl):
    """Beats and hears nothing: it makes no progress."""

    def take(self, event: Any) -> None:
        """Deaf."""


class Hopeless(Kl):
    """Tries, and fails, at every step."""

    def take(self, event: Any) -> None:
        """In vain."""
        self.failures += 1


class Broken(Kl):
    """Cannot be loaded."""

    def start(self) -> None:
        raise ImportError("no such law")


class Beyond(Kl):
    """Decides what the knob's bounds never allow."""

    def decide(self, measured: Any, step: int) -> Any:
        return {"kl.coef": -1.0}


class Empty(Kl):
    """Decides nothing about what it steers."""

    def decide(self, measured: Any, step: int) -> Any:
        return {}


class Nan(Kl):
    """Decides no number."""

    def decide(self, measured: Any, step: int) -> Any:
        return {"kl.coef": float("nan")}


CLASSES: dict[str, type[Controller]] = {
    "": Kl, "pid": Kl, "lost": Kl, "sloth": Sloth, "broken": Broken, "mute": Silent, "hopeless": Hopeless,
    "beyond": Beyond, "empty": Empty, "nan": Nan,
}  # fmt: skip


def settings_of(identity: str, config: Any, slot: str = "kl") -> Settings:
    """What the process is given."""
    name = identity.partition("#")[0]
    return Settings(Path(), "sim-0", name, slot, "", config, {}, 0, (), {}, Path(), {})


def kl(variant: str, identity: str, bus: SimBus) -> Controller:
    """A KL controller."""
    return CLASSES[variant](identity, bus, settings_of(identity, CONFIGS[variant]))


def world(seed: int, **network: float) -> World:
    """A learner and a KL controller; swaps may bring the variants of `CONFIGS`."""
    specs: dict[str, ServiceSpec] = {
        "learner": ServiceSpec(kind="learner", heartbeat_timeout_s=2.0, intensity=100),
        "kl": KlConfig(heartbeat_timeout_s=2.0, intensity=100, start_timeout_s=10.0, shutdown_s=1.0),
    }
    makes: dict[str, Callable[[str, SimBus], Actor]] = {"learner": Metrics}
    makes |= {f"kl@{variant}" if variant else "kl": partial(kl, variant) for variant in CONFIGS}
    return World(seed, specs, makes, **network)


class Person(Actor):
    """Asks the kernel what a command line would; never says hello."""

    def __init__(self, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.answers: list[Received] = []

    def on_turn(self, now: float) -> float:
        return 0.1

    def ask(self, message: Message) -> None:
        """Again until it is answered: the kernel may be away."""
        self.mail.request("ctl", message, 0.5, self.answers.append, lambda why: self.ask(message))


def until(run: World, what: Callable[[], object], most_s: float = 60.0) -> None:
    """Let virtual time pass until it is so; looked at every 20 ms."""
    now = run.network.clock
    end = now + most_s
    while not what():
        assert now < end, f"not so within {most_s} s: {stages(run)}"
        now += 0.02
        run.run(now)


def pass_time(run: World, seconds: float) -> None:
    """Let so much virtual time pass."""
    run.run(run.network.clock + seconds)


def person(run: World) -> Person:
    """One more node."""
    name = f"cli-{len(run.network.nodes)}#1"
    one = Person(name, SimBus(run.network, name))
    run.network.join(name, one, 99)
    return one


def swap(run: World, variant: str, probation_s: float = 1.0) -> Person:
    """Ask for a swap of the KL controller."""
    one = person(run)
    one.ask(SwapStart(slot="kl", part_json=json.dumps({"variant": variant}), probation_s=probation_s))
    return one


@dataclass
class Guest:
    """A process that the warden does not own: it ends when its node leaves."""

    world: World
    node: Controller

    def deliver(self, port: str, incoming: Incoming) -> None:
        """A message."""
        self.node.deliver(port, incoming)

    def turn(self, now: float) -> float:
        """A turn; an exit code ends it."""
        wait = self.node.turn(now)
        if self.node.exit_code is not None:
            self.world.network.crash(self.node.identity)
        return max(wait, 0.002)


def attach(run: World, name: str, shadow: bool, variant: str = "pid", pid: int = 5000) -> Controller:
    """A controller from outside."""
    bus = SimBus(run.network, f"{name}#7")
    one = CLASSES[variant](f"{name}#7", bus, settings_of(f"{name}#7", CONFIGS[variant]))
    one.attached, one.role = Attached("kl", "to see"), "shadow" if shadow else "active"
    run.network.join(f"{name}#7", Guest(run, one), pid)
    return one


def events(run: World, topic: str = "") -> list[dict[str, Any]]:
    """The run's events so far."""
    found = [record for record in run.journal.records if record["t"] == "event"]
    return [event for event in found if not topic or event["topic"] == topic]


def stages(run: World) -> list[str]:
    """The stages of all swaps so far."""
    return [event["body"]["stage"] for event in events(run, "swap")]


def ownerless_steps(run: World, knob: str = "kl.coef") -> list[int]:
    """Training steps whose metrics came while nobody had the knob, from the first grant on."""
    owner, found, begun = None, [], False
    for event in events(run):
        body = event["body"]
        if event["topic"] == "knob.granted" and body["knob"] == knob:
            owner, begun = body["owner"], True
        elif event["topic"] == "knob.released" and body["knob"] == knob:
            owner = None
        elif event["topic"] == "metrics" and begun and owner is None:
            found.append(event["step"])
    return found


def replayed(run: World) -> list[Verdict]:
    """Every controller of the run, replayed; those whose class decides."""

    def again(identity: str, bus: Any, params: Any) -> Controller:
        return Kl(identity, bus, settings_of(identity, KlConfig.model_validate(params)))

    past = [{key: event[key] for key in ("seq", "ns", "source", "topic", "step", "body")} for event in events(run)]
    return [verify(lambda: past, one, partial(again, params=one.params)) for one in incarnations(past)]
