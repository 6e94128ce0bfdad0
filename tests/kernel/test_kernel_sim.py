"""The kernel and real actors in one process: supervision, knobs and events over a lossy network and a virtual clock."""

from typing import ClassVar

import pytest
from support.sim import SimBus, World
from support.steering_world import person

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.node import Letter, handles
from midflight.kernel.spec import ServiceSpec
from midflight.messages.base import Scalar
from midflight.messages.control import Hello, Refused, Status, StatusGet
from midflight.messages.events import Event
from midflight.messages.knobs import KnobAcquire, KnobDeclaration, KnobGranted, KnobOk, KnobSet
from midflight.messages.sockets import Role
from midflight.messages.wire import Received

LR = KnobDeclaration(name="optim.lr", kind="float", unit="1", default=0.5, low=0.0, high=1.0, description="rate")


class Applier(Actor):
    """Declares a knob, and posts one numbered event every 50 ms."""

    def __init__(self, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.applied: list[float] = []
        self.posted = 0
        self._next = 0.0

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        return (LR,)

    def apply_knob(self, name: str, value: Scalar) -> int:
        assert isinstance(value, float)
        self.applied.append(value)
        return len(self.applied)

    def work(self, now: float) -> bool:
        if now >= self._next and self.posted < 40:
            self._next = now + 0.05
            self.posted += 1
            self.progress += 1
            self.event("metrics", {"n": self.posted}, self.posted)
        return False


class Watcher(Actor):
    """Follows the stream and, once it has the knob, sets it to 0.25."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}

    def __init__(self, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.seen: list[tuple[str, int]] = []
        self.numbers: list[int] = []
        self.follow = Follow(self.mail, self._take)
        self.granted: list[int] = []
        self.refused: list[str] = []
        self._asked = 0.0

    def work(self, now: float) -> bool:
        self.follow.catch_up(self.newest_event)
        if not self.granted and now >= self._asked:
            self._asked = now + 0.5
            self.mail.request("ctl", KnobAcquire(knob="optim.lr"), 2.0, self._answer, self.refused.append)
        return False

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        self.follow.live(message)

    def _take(self, event: Event) -> None:
        self.numbers.append(event.seq)
        if event.topic == "metrics":
            self.seen.append((event.source, int(event.body["n"] or 0)))

    def _answer(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, KnobGranted):
            self.granted.append(answer.epoch)
            self._set(answer.epoch)
        elif isinstance(answer, Refused):
            self.refused.append(answer.code)

    def _set(self, epoch: int) -> None:
        message = KnobSet(knob="optim.lr", value=0.25, epoch=epoch, reason="test")
        self.mail.request("ctl", message, 2.0, self._was_set, lambda why: self._set(epoch))

    def _was_set(self, received: Received) -> None:
        assert isinstance(received.message, KnobOk)


def world(seed: int, **network: float) -> World:
    """An applier and a watcher that depends on it."""
    specs = {
        "applier": ServiceSpec(kind="applier", heartbeat_timeout_s=2.0, intensity=100),
        "watcher": ServiceSpec(kind="watcher", depends_on=["applier"], heartbeat_timeout_s=2.0, intensity=100),
    }
    return World(seed, specs, {"applier": Applier, "watcher": Watcher}, **network)


def node(run: World, name: str) -> Applier | Watcher:
    """The living actor of a name."""
    (found,) = [p.node for p in run.living.values() if p.name == name]
    assert isinstance(found, Applier | Watcher)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_event_arrives_exactly_once(seed: int) -> None:
    """Over a network that loses 10 % and repeats 10 % of all messages, and over two deaths of the kernel."""
    run = world(seed, loss=0.1, repeat=0.1)
    run.network.at(1.0, run.crash_kernel)
    run.network.at(2.5, run.crash_kernel)
    run.run(30.0)
    watcher = node(run, "watcher")
    assert isinstance(watcher, Watcher)
    assert sorted(n for source, n in watcher.seen if source == "applier#1") == list(range(1, 41))
    assert watcher.numbers == sorted(set(watcher.numbers))
    assert run.faults == []


@pytest.mark.parametrize("seed", range(10))
def test_a_knob_reaches_the_service_that_applies_it(seed: int) -> None:
    """Declared, acquired, set, applied and confirmed, with the author and the step kept."""
    run = world(seed, loss=0.1, repeat=0.1)
    run.run(20.0)
    applier = node(run, "applier")
    assert isinstance(applier, Applier)
    assert applier.applied[-1] == 0.25
    knob = run.kernel.desk.table.knobs["optim.lr"]
    assert (knob.value, knob.owner, knob.author, knob.reason) == (0.25, "watcher#1", "watcher#1", "test")
    assert knob.applied_version == knob.version
    assert knob.applied_step is not None


def test_a_killed_kernel_readopts_its_services() -> None:
    """Same generations, same processes, no restart; the knob's owner and value are as before."""
    run = world(1)
    run.run(3.0)
    before = set(run.living)
    run.crash_kernel(away=1.0)
    run.run(8.0)
    assert set(run.living) == before
    assert all(child.restarts == 0 for child in run.kernel.supervisor.roster)
    assert run.kernel.desk.table.knobs["optim.lr"].owner == "watcher#1"
    assert [i.state for i in run.kernel.supervisor.registry.owned.values()] == ["running", "running"] or all(
        i.state in ("ready", "running") for i in run.kernel.supervisor.registry.owned.values()
    )


def test_a_hung_service_is_killed_and_replaced() -> None:
    """A stopped main loop sends no heartbeats: the next generation takes over, and the knob is freed."""
    run = world(2)
    run.run(3.0)
    run.stop("watcher")
    run.run(10.0)
    assert any(identity.startswith("watcher#2") for identity in run.living)
    assert run.kernel.desk.table.knobs["optim.lr"].owner == "watcher#2"


def test_a_service_that_hangs_before_hello_meets_its_start_deadline() -> None:
    """A start deadline, not the heartbeat, catches a process that never spoke."""
    specs = {"mute": ServiceSpec(kind="mute", start_timeout_s=3.0, intensity=100)}
    run = World(3, specs, {"mute": Applier})
    run.network.at(0.051, lambda: run.stop("mute"))
    run.run(6.0)
    assert "mute#2" in run.living


def test_an_imposter_is_refused() -> None:
    """A hello under a living service's name from another process is refused, and the service lives on."""
    run = world(4)
    run.run(2.0)
    imposter = Applier("applier#1", SimBus(run.network, "applier#1"))
    run.network.pids["applier#1"], real = 99, run.network.pids["applier#1"]
    imposter._hello(run.network.clock)
    run.run(2.005)
    run.network.pids["applier#1"] = real
    run.run(4.0)
    assert "applier#1" not in run.living or run.living["applier#1"].node.exit_code is None


class Stranger(Watcher):
    """Asks for the knob without a hello first; as a client, says hello once and then falls silent."""

    client = False

    def on_turn(self, now: float) -> float:
        if self.client and self.boot is None:
            self.mail.send("ctl", Hello(proto_min=1, proto_max=1, pid=7, role="client", version="t"))
        elif not self._asked:
            self._asked = now
            self.mail.request("ctl", KnobAcquire(knob="optim.lr"), 2.0, self._answer, self.refused.append)
        return 0.05

    def _set(self, epoch: int) -> None:
        return


def test_only_who_is_watched_may_hold_a_knob() -> None:
    """A stranger is refused; a client that holds it and dies while the kernel is away loses it after its timeout."""
    specs = {"applier": ServiceSpec(kind="applier", heartbeat_timeout_s=2.0, intensity=100)}
    run = World(6, specs, {"applier": Applier})
    run.run(1.0)
    stranger, client = (Stranger(name, SimBus(run.network, name)) for name in ("stranger#9", "client#9"))
    client.client = True
    run.network.join("stranger#9", stranger, pid=8)
    run.run(2.0)
    assert stranger.refused == ["identity"]
    run.network.join("client#9", client, pid=7)
    run.run(3.0)
    knob = run.kernel.desk.table.knobs["optim.lr"]
    assert (client.granted, knob.owner) == ([knob.epoch], "client#9")
    run.network.crash("client#9")
    run.crash_kernel()
    run.run(10.0)
    assert run.kernel.desk.table.knobs["optim.lr"].owner == "client#9"  # it may still come back
    run.run(20.0)
    assert run.kernel.desk.table.knobs["optim.lr"].owner is None


class Wrong(Applier):
    """Declares a knob whose default lies outside its bounds."""

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        return (LR.model_copy(update={"default": 5.0}),)


def test_a_knob_that_makes_no_sense_costs_its_service_and_not_the_kernel() -> None:
    """The service hears why and gives up; the kernel and everybody else go on."""
    specs = {
        "wrong": ServiceSpec(kind="wrong", restart="temporary"),
        "applier": ServiceSpec(kind="applier", heartbeat_timeout_s=2.0),
    }
    run = World(7, specs, {"wrong": Wrong, "applier": Applier})
    run.run(5.0)
    assert [identity for identity in run.living if not identity.startswith("kernel")] == ["applier#1"]
    assert len(run.faults) == 1
    assert "knob optim.lr: its default is refused" in run.faults[0]


def test_the_end_of_a_run_is_in_order() -> None:
    """Dependents first; every service drains and leaves with 0; the run's code is 0."""
    run = world(5)
    run.run(2.0)
    run.kernel.carry_out(run.kernel.supervisor.request_stop("drain", "test", run.network.clock))
    run.run(20.0)
    assert run.code == 0
    assert run.living == {}
    ends = [r["body"]["name"] for r in run.journal.records if r["t"] == "event" and r["topic"] == "service.exit"]
    assert ends == ["watcher", "applier"]


def test_a_long_reason_to_end_is_told_as_far_as_it_fits() -> None:
    """Whoever asks for the state of a run that fails, as `midflight ps` does, must not end its kernel."""
    run = world(5)
    run.run(2.0)
    asker = person(run)
    run.kernel.carry_out(run.kernel.supervisor.request_stop("drain", "x" * 3000, run.network.clock, 1))
    asker.ask(StatusGet())
    run.run(run.network.clock + 1.0)
    assert run.faults == []
    (answer,) = [one.message for one in asker.answers]
    assert isinstance(answer, Status)
    assert answer.stopping == "x" * 200
