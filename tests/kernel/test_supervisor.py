"""The supervisor against a simulated warden: start and stop order, faults, strategies, give-up, re-adoption."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from midflight.kernel.commands import Command, Emit, Gone, Kill, RunOver, SendDrain, Spawn
from midflight.kernel.ladder import Ladder
from midflight.kernel.refusal import Refusal
from midflight.kernel.registry import Greeting
from midflight.kernel.restart import Exit, Kind, Strategy
from midflight.kernel.supervisor import Beat, Listing, Supervisor

Manner = Literal["good", "mute", "hung", "deaf"]
"""good: as it should be. mute: never says hello. hung: no heartbeats. deaf: only SIGKILL ends it."""


@dataclass(frozen=True)
class Spec:
    """A slot's configuration with small times."""

    kind: str = "any"
    replicas: int = 1
    restart: Kind = "permanent"
    strategy: Strategy = "one_for_one"
    significant: bool = False
    depends_on: Sequence[str] = ()
    start_timeout_s: float = 5.0
    heartbeat_timeout_s: float = 2.0
    intensity: int = 5
    period_s: float = 60.0
    backoff_s: float = 0.05
    backoff_max_s: float = 2.0
    shutdown_s: float = 4.0


@dataclass
class Process:
    """A simulated child: what it does, and what it has said."""

    name: str
    generation: int
    pid: int
    manner: Manner
    said: set[str] = field(default_factory=set)
    draining: bool = False
    phase: str = ""


class World:
    """Warden and services around one supervisor, on a virtual clock; checks the promises at every command."""

    def __init__(self, specs: dict[str, Spec], seed: int = 0) -> None:
        self.specs, self.seed, self.now = specs, seed, 1000.0
        self.manner: Callable[[Spawn], Manner] = lambda spawn: "good"
        self.living: dict[str, Process] = {}
        self.unheard: list[tuple[str, int, Exit]] = []
        self.log: list[tuple[float, Command]] = []
        self.highest: dict[str, int] = {}
        self.over: RunOver | None = None
        self.drain_takes_part = True
        self.supervisor = self.fresh()

    def fresh(self) -> Supervisor:
        """Build a supervisor that knows nothing."""
        return Supervisor(self.specs, random.Random(self.seed), Ladder(term_s=1.0, kill_s=1.0, drain_max_s=30.0))

    def start(self) -> None:
        """The kernel's first input."""
        living = tuple((p.name, p.generation, p.pid) for p in self.living.values())
        exits, self.unheard = tuple(self.unheard), []
        self.obey(self.supervisor.on_started(Listing(living, exits), self.now))

    def obey(self, commands: list[Command] | Refusal) -> None:
        """Carry commands out as warden and services would."""
        assert not isinstance(commands, Refusal)
        for command in commands:
            assert self.over is None, f"{command} after the run was over"
            self.log.append((self.now, command))
            match command:
                case Spawn(name, generation):
                    assert name not in self.living, f"second live generation of {name}"
                    assert generation > self.highest.get(name, 0), "a generation came twice"
                    self.highest[name] = generation
                    process = Process(name, generation, 1000 + len(self.log), self.manner(command))
                    self.living[name] = process
                    self.obey(self.supervisor.on_spawned(name, generation, process.pid, self.now))
                case Kill(name, generation, number):
                    self.signalled(name, generation, number)
                case SendDrain(name, generation):
                    if (told := self.living.get(name)) and (told.generation, told.manner) == (generation, "good"):
                        told.draining = True
                case RunOver():
                    self.over = command

    def signalled(self, name: str, generation: int, number: int) -> None:
        """SIGKILL always ends a process, SIGTERM only one that listens."""
        process = self.living.get(name)
        if process and process.generation == generation and (number == signal.SIGKILL or process.manner == "good"):
            self.die(name, Exit(signal=number))

    def die(self, name: str, ended: Exit) -> None:
        """A process ends; the kernel will hear of it in the next step."""
        process = self.living.pop(name)
        self.unheard.append((name, process.generation, ended))

    def step(self, dt: float = 0.2) -> None:
        """Let time pass, deliver exits, let services speak, tick."""
        self.now += dt
        unheard, self.unheard = self.unheard, []
        for name, generation, ended in unheard:
            self.obey(self.supervisor.on_exit(name, generation, ended, self.now))
        for process in list(self.living.values()):
            if self.living.get(process.name) is process and process.manner not in ("mute", "hung"):
                self.speak(process)
        self.obey(self.supervisor.on_tick(self.now))

    def speak(self, process: Process) -> None:
        """One turn of a service's main loop."""
        name, generation = process.name, process.generation
        boot = f"boot-{id(self.supervisor)}"
        if boot not in process.said:
            ready = "ready" in process.said
            greeting = Greeting(name, generation, f"{name}#{generation}", (process.pid,), boot, ready=ready)
            answer, commands = self.supervisor.on_hello(greeting, self.now)
            self.obey(commands)
            if not isinstance(answer, Refusal):
                process.said.add(boot)
        elif "ready" not in process.said:
            process.said.add("ready")
            self.obey(self.supervisor.on_ready(name, generation, self.now))
        elif process.draining and not process.phase and self.drain_takes_part:
            self.die(name, Exit(code=0))
        else:
            beat = Beat(len(self.log), process.phase, 20.0 if process.phase else 0.0)
            self.obey(self.supervisor.on_heartbeat(name, generation, beat, self.now))

    def run(self, seconds: float) -> None:
        """Let many steps pass, or until the run is over."""
        end = self.now + seconds
        while self.now < end and not self.over:
            self.step()

    def kernel_restart(self, remember: bool = True) -> None:
        """Kill the kernel: a new supervisor with the journaled state (or none) meets the living services."""
        state = msgpack.unpackb(msgpack.packb(self.supervisor.dump()))
        self.supervisor = self.fresh()
        if remember:
            self.supervisor.load(state)
        self.start()

    def state(self, name: str) -> str:
        """The supervisor's view of a name."""
        return self.supervisor.registry.owned[name].state

    def of(self, kind: type) -> list[Command]:
        """All commands of one type, in order."""
        return [command for _, command in self.log if isinstance(command, kind)]

    def spawned(self) -> list[str]:
        """Names in the order of their spawns."""
        return [c.name for c in self.of(Spawn) if isinstance(c, Spawn)]

    def kills(self) -> list[tuple[str, int]]:
        """(name, signal) in order."""
        return [(c.name, c.signal) for c in self.of(Kill) if isinstance(c, Kill)]


DEMO = {
    "learner": Spec(depends_on=["ledger"], restart="transient", significant=True),
    "rollout": Spec(depends_on=["ledger", "reward"], replicas=2),
    "reward": Spec(depends_on=["ledger"]),
    "ledger": Spec(significant=True),
    "tracker": Spec(),
}


def up(specs: dict[str, Spec] | None = None) -> World:
    """A world in which everything runs."""
    world = World(DEMO if specs is None else specs)
    world.start()
    world.run(5.0)
    assert {world.state(name) for name in world.living} == {"running"}
    return world


def test_starts_by_dependency_left_to_right() -> None:
    """A child starts when its dependencies are ready, and independents start together."""
    world = World(DEMO)
    world.start()
    assert world.spawned() == ["ledger", "tracker"]
    world.run(5.0)
    assert world.spawned() == ["ledger", "tracker", "learner", "reward", "rollout-0", "rollout-1"]


def test_stops_in_reverse_and_drained() -> None:
    """Nobody is stopped before those who depend on it are gone; no signal is needed; the run's code is 0."""
    world = up()
    world.obey(world.supervisor.request_stop("drain", "midflight down", world.now))
    world.run(30.0)
    gone = [c.name for c in world.of(Gone) if isinstance(c, Gone)]
    assert gone.index("reward") > max(gone.index("rollout-0"), gone.index("rollout-1"))
    assert gone[-1] == "ledger"
    assert world.kills() == []
    assert world.over == RunOver(0, "midflight down")


def test_ladder_of_a_deaf_service() -> None:
    """Drain message, after shutdown_s SIGTERM, after term_s SIGKILL."""
    world = World({"a": Spec()})
    world.manner = lambda spawn: "deaf"
    world.start()
    world.run(2.0)
    world.drain_takes_part = False
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    begun = world.now
    world.run(30.0)
    steps = [(round(at - begun, 6), c) for at, c in world.log if isinstance(c, SendDrain | Kill)]
    assert [type(c).__name__ for _, c in steps] == ["SendDrain", "Kill", "Kill"]
    assert [at for at, _ in steps] == pytest.approx([0.0, 4.0, 5.0], abs=0.3)
    assert world.kills() == [("a", 15), ("a", 9)]
    assert world.over is not None


def test_stop_gets_harsher_only() -> None:
    """A second request cuts a drain short, a third kills everything at once; a milder one has no effect."""
    world = up()
    world.drain_takes_part = False
    for process in world.living.values():
        process.manner = "deaf"
    world.obey(world.supervisor.request_stop("drain", "first", world.now))
    world.run(1.0)
    world.obey(world.supervisor.request_stop("stop", "second", world.now))
    assert ("learner", 15) in world.kills()
    assert ("ledger", 15) not in world.kills()
    assert world.supervisor.request_stop("drain", "x", world.now) == []
    world.obey(world.supervisor.request_stop("kill", "third", world.now))
    world.run(0.5)
    assert world.living == {}
    assert world.over == RunOver(0, "first")


def test_a_phase_stretches_the_drain() -> None:
    """A service in a declared phase is not signalled before the phase is over; then it still gets shutdown_s."""
    world = up({"a": Spec()})
    world.living["a"].phase = "checkpoint"
    world.step()
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    world.run(12.0)
    assert world.kills() == []
    world.living["a"].phase = ""
    world.run(1.0)
    assert world.over == RunOver(0, "end")


def test_a_phase_begun_while_draining_is_awaited_up_to_a_bound() -> None:
    """The checkpoint that a drain leads to may take its time, but not for ever: SIGTERM after drain_max_s."""
    world = up({"a": Spec()})
    world.drain_takes_part = False
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    begun = world.now
    world.run(2.0)
    world.living["a"].phase = "checkpoint"
    while not world.kills():
        world.step()
    assert world.now - begun == pytest.approx(30.0, abs=0.5)
    world.run(5.0)
    assert world.over is not None


def test_significant_failure_while_draining_fails_the_run() -> None:
    """A learner that crashes in its last checkpoint must not end as a success; a forced end is no failure."""
    world = up()
    world.obey(world.supervisor.request_stop("drain", "down", world.now))
    world.die("learner", Exit(code=1, tail="OSError: no space left on device"))
    world.run(20.0)
    assert world.over == RunOver(
        1, "learner failed while the run was ending: exit code 1: OSError: no space left on device"
    )


def test_significant_replicas_end_the_run_when_the_last_has_left() -> None:
    """One of two finished workers does not end the run; both do."""
    world = up({"worker": Spec(replicas=2, restart="transient", significant=True)})
    world.die("worker-0", Exit(code=0))
    world.run(2.0)
    assert world.over is None
    world.die("worker-1", Exit(code=0))
    world.run(2.0)
    assert world.over == RunOver(0, "worker-1 finished")


def test_unkillable_process_does_not_hold_the_end() -> None:
    """A process in uninterruptible sleep is named in the reason, and the run ends all the same."""
    world = up({"a": Spec()})
    world.signalled = lambda name, generation, number: None  # type: ignore[method-assign]
    world.drain_takes_part = False
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    world.run(30.0)
    assert world.over == RunOver(0, "end; did not die: a#1")


@pytest.mark.parametrize("manner", ["mute", "hung"])
def test_hang_is_found_killed_and_replaced(manner: Manner) -> None:
    """A hang before hello falls to the start deadline, one later to the heartbeat timeout plus a tick."""
    world = World({"a": Spec()})
    world.manner = lambda spawn: manner if manner == "mute" and spawn.generation == 1 else "good"
    world.start()
    world.run(1.0)
    if manner == "hung":
        world.living["a"].manner = "hung"
    begun = world.now
    while not world.kills():
        world.step()
    limit = 5.0 - 1.0 if manner == "mute" else 2.0
    assert world.now - begun == pytest.approx(limit, abs=0.5)
    world.run(3.0)
    assert (world.state("a"), world.living["a"].generation) == ("running", 2)
    (ended,) = [c for c in world.of(Emit) if isinstance(c, Emit) and c.topic == "service.exit"]
    assert isinstance(ended, Emit)
    assert str(ended.body["cause"]).startswith("SIGKILL (" + ("no hello" if manner == "mute" else "silent for"))


def test_kernel_stopped_five_seconds_kills_nobody() -> None:
    """SIGSTOP of the kernel: at SIGCONT the tick may come first, and everybody gets the time back."""
    world = up()
    pids = {p.pid for p in world.living.values()}
    for first in ("tick", "beats"):
        world.now += 5.0
        if first == "tick":
            world.obey(world.supervisor.on_tick(world.now))
        world.run(5.0)
    assert world.kills() == []
    assert {p.pid for p in world.living.values()} == pids


def test_kernel_stopped_while_killing_still_waits_for_the_exit() -> None:
    """A SIGKILL sent just before the kernel was stopped is not taken for one without effect."""
    world = up({"a": Spec()})
    world.obey(world.supervisor.request_stop("kill", "end", world.now))
    world.now += 60.0
    world.obey(world.supervisor.on_tick(world.now))
    assert world.over is None
    world.run(1.0)
    assert world.over == RunOver(0, "end")


def test_significant_normal_exit_ends_the_run_with_0() -> None:
    """The learner finishes: the others drain in order and the run's code is 0."""
    world = up()
    world.die("learner", Exit(code=0))
    world.run(30.0)
    assert world.over == RunOver(0, "learner finished")
    assert world.kills() == []


def crash_storm(name: str, specs: dict[str, Spec] | None = None) -> World:
    """Let every incarnation of one child crash as soon as it is up."""
    world = up(specs)
    for _ in range(400):
        if name in world.living:
            world.die(name, Exit(code=1, tail="ValueError: boom"))
        world.step()
        if world.over:
            break
    return world


def test_significant_crash_storm_fails_the_run_and_says_why() -> None:
    """Give-up escalates: code 1 and the whole story."""
    world = crash_storm("ledger")
    assert world.over is not None
    assert world.over.code == 1
    for part in ("ledger: gave up after 6 exits in", "(at most 5 restarts in 60 s)", "exit code 1: ValueError: boom"):
        assert part in world.over.why
    assert world.spawned().count("ledger") == 6


def test_insignificant_crash_storm_leaves_the_run_going() -> None:
    """The run says why and goes on without the service."""
    world = crash_storm("tracker")
    assert world.over is None
    assert world.state("tracker") == "failed"
    (failed,) = [c for c in world.of(Emit) if isinstance(c, Emit) and c.topic == "service.failed"]
    assert isinstance(failed, Emit)
    assert str(failed.body["why"]).endswith("the run goes on without it")
    assert {world.state(n) for n in world.living} == {"running"}
    world.obey(world.supervisor.request_restart("tracker", "fixed it", world.now))
    world.run(2.0)
    assert world.state("tracker") == "running"


def test_dependents_of_a_failed_service_fail_with_the_reason() -> None:
    """Nobody waits for ever for a dependency that has been given up."""
    specs = {"a": Spec(intensity=0), "b": Spec(depends_on=["a"], significant=True)}
    world = World(specs)
    world.manner = lambda spawn: "mute"
    world.start()
    world.run(20.0)
    assert world.over is not None
    assert world.over.code == 1
    assert "b: cannot start: it depends on a, which has failed" in world.over.why


def test_one_for_all_restarts_the_group_and_only_it() -> None:
    """A rank dies: all ranks end and come back as new generations; others keep their pids."""
    world = up({"ledger": Spec(), "learner": Spec(replicas=3, strategy="one_for_all", depends_on=["ledger"])})
    world.die("learner-1", Exit(signal=9))
    world.run(5.0)
    assert {n: p.generation for n, p in world.living.items()} == {
        "ledger": 1, "learner-0": 2, "learner-1": 2, "learner-2": 2,
    }  # fmt: skip
    children = world.supervisor.roster.by_name
    assert [len(children[f"learner-{i}"].history) for i in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(("manner", "pause", "earliest"), [("deaf", 0.1, 1.0), ("good", 3.0, 1.5)])
def test_a_group_starts_when_all_of_it_is_gone_and_the_pause_is_over(
    manner: Manner, pause: float, earliest: float
) -> None:
    """A rank that is hard to kill holds the others back, and all wait for the backoff of the one that died."""
    world = up({"learner": Spec(replicas=2, strategy="one_for_all", backoff_s=pause, backoff_max_s=pause)})
    world.living["learner-1"].manner = manner
    world.die("learner-0", Exit(code=1))
    begun, mark = world.now, len(world.log)
    world.run(8.0)
    starts = [at - begun for at, c in world.log[mark:] if isinstance(c, Spawn)]
    assert len(starts) == 2
    assert min(starts) >= earliest
    assert max(starts) - min(starts) < 0.01


def test_rest_for_one_restarts_dependents_after_it() -> None:
    """Direct and indirect dependents restart, in order, once it is ready again; others stay."""
    specs = {
        "a": Spec(strategy="rest_for_one"),
        "b": Spec(depends_on=["a"]),
        "c": Spec(depends_on=["b"]),
        "d": Spec(),
    }
    world = up(specs)
    world.die("a", Exit(code=1))
    world.run(10.0)
    assert {n: p.generation for n, p in world.living.items()} == {"a": 2, "b": 2, "c": 2, "d": 1}
    assert world.spawned()[4:] == ["a", "b", "c"]


def test_failed_group_fails_as_one() -> None:
    """one_for_all gives up: no rank is left behind."""
    specs = {"learner": Spec(replicas=2, strategy="one_for_all", intensity=1, significant=True), "x": Spec()}
    world = crash_storm("learner-0", specs)
    assert world.over is not None
    assert world.over.code == 1
    assert world.living == {}


def test_requested_restart_drains_first_and_does_not_count() -> None:
    """`service restart` of a slot restarts each replica; their histories stay empty."""
    world = up()
    world.obey(world.supervisor.request_restart("rollout", "new code", world.now))
    world.run(5.0)
    assert [world.living[f"rollout-{i}"].generation for i in (0, 1)] == [2, 2]
    assert world.kills() == []
    assert [c.restarts for c in world.supervisor.roster] == [0] * 6
    refusal = world.supervisor.request_restart("rolout", "", world.now)
    assert refusal == Refusal("unknown", "there is no service 'rolout' - did you mean 'rollout'?")


def test_condemned_service_counts_as_a_fault() -> None:
    """The memory watch kills the offender; its policy brings it back."""
    world = up()
    world.obey(world.supervisor.condemn("reward", 1, "used 3.1 GiB (limit 2 GiB)", world.now))
    world.run(5.0)
    assert world.living["reward"].generation == 2
    assert len(world.supervisor.roster.by_name["reward"].history) == 1
    assert world.supervisor.condemn("reward", 1, "again", world.now) == []


@pytest.mark.parametrize("remember", [True, False])
def test_kernel_restart_adopts_the_living(remember: bool) -> None:
    """A new kernel, with or without its journal, keeps every pid; the one that died meanwhile is replaced."""
    world = up()
    for _ in range(2):
        world.die("reward", Exit(signal=9))
        world.die("tracker", Exit(signal=9))
        world.run(5.0)
    pids = {n: p.pid for n, p in world.living.items() if n != "reward"}
    world.die("reward", Exit(signal=9))
    world.kernel_restart(remember)
    world.run(5.0)
    assert {n: p.pid for n, p in world.living.items() if n != "reward"} == pids
    assert world.living["reward"].generation == 4
    assert world.supervisor.registry.owned["tracker"].generation == 3
    assert world.kills() == []
    assert {world.state(n) for n in world.living} == {"running"}


def test_adopted_services_have_time_to_find_the_new_kernel() -> None:
    """A reconnect may take a second on top of the heartbeat limit; a hung one is found all the same."""
    world = up({"a": Spec(), "b": Spec()})
    for process in world.living.values():
        process.manner = "hung"
    world.kernel_restart()
    world.run(3.5)
    assert world.kills() == []
    world.living["a"].manner = "good"
    world.run(2.0)
    assert world.kills() == [("b", 9)]


def test_kernel_restart_in_a_long_phase_kills_nobody() -> None:
    """A learner silent in a declared phase keeps its phase limit under the new kernel."""
    world = up()
    world.living["learner"].phase = "train"
    world.step()
    world.living["learner"].manner = "hung"
    world.kernel_restart()
    world.run(15.0)
    assert world.kills() == []
    world.run(10.0)
    assert world.kills() == [("learner", 9)]


def test_kernel_restart_while_stopping_goes_on_stopping() -> None:
    """The end of a run survives the kernel, and a lost drain message is sent again."""
    world = up()
    world.supervisor.request_stop("drain", "down", world.now)
    world.kernel_restart()
    world.run(30.0)
    assert world.over == RunOver(0, "down")
    assert world.kills() == []


def test_strangers_and_strays_are_killed() -> None:
    """A process of no known name, or of an older generation, is killed and never counted as the service."""
    world = up({"a": Spec()})
    stranger = world.supervisor.on_spawned("b", 1, 7, world.now)
    assert stranger == [Kill("b", 1, 9, "not a service of this run")]
    assert Kill("a", 3, 9, "not the current generation") in world.supervisor.on_spawned("a", 3, 8, world.now)
    world.die("a", Exit(code=1))
    world.run(1.0)
    assert "a" not in world.living
    world.obey(world.supervisor.on_exit("a", 3, Exit(signal=9), world.now))
    assert world.living["a"].generation == 4


def test_lost_spawn_is_repeated_without_blame() -> None:
    """The kernel died between the journal and the warden: the next generation starts and nothing is counted."""
    world = World({"a": Spec()})
    world.supervisor.on_started(Listing(), world.now)
    world.kernel_restart()
    world.run(2.0)
    assert world.living["a"].generation == 2
    assert world.supervisor.roster.by_name["a"].history == []


def test_new_run_keeps_generations_only() -> None:
    """After --resume under another warden generations go on growing and old faults are forgotten."""
    world = crash_storm("tracker")
    supervisor = world.fresh()
    supervisor.load(world.supervisor.dump(), new_run=True)
    commands = supervisor.on_started(Listing(), 5.0)
    assert [c for c in commands if isinstance(c, Spawn)] == [
        Spawn("ledger", 2, "ledger"),
        Spawn("tracker", 7, "tracker"),
    ]


def test_attached_client_comes_and_goes() -> None:
    """A client is announced, loses its session by silence or by leaving, and is never killed."""
    world = up()
    hello = Greeting("tui", 1, "tui#1", (7,), "b", attach=True)
    for end in ("silence", "leave"):
        _, commands = world.supervisor.on_hello(hello, world.now)
        assert [(c.topic, c.final) for c in commands if isinstance(c, Emit)] == [("client.state", False)]
        mark = len(world.log)
        if end == "silence":
            world.run(11.0)
        else:
            world.obey(world.supervisor.on_leave("tui", 1, "bye"))
        last = [c for _, c in world.log[mark:]]
        assert any(isinstance(c, Gone) and c.name == "tui" for c in last)
        assert any(isinstance(c, Emit) and c.final for c in last)
    assert world.kills() == []


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ({"a": Spec(depends_on=["b"])}, "a.depends_on: there is no service 'b'"),
        ({"a": Spec(depends_on=["b"]), "b": Spec(depends_on=["a"])}, "in a circle: a -> b -> a"),
        ({"a": Spec(replicas=2), "a-1": Spec()}, "two services are called 'a-1'"),
    ],
)
def test_bad_topologies_are_refused(specs: dict[str, Spec], text: str) -> None:
    """Unknown dependencies, circles and clashing names are found before anything starts."""
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        Supervisor(specs, random.Random(0))


NAMES = st.sampled_from(["ledger", "learner-0", "learner-1", "rollout-0", "rollout-1", "reward", "tracker"])


class Storm(RuleBasedStateMachine):
    """Random faults in random order, kernel deaths included; `World` checks generations at every command."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        specs = {
            "ledger": Spec(strategy="rest_for_one", intensity=8, period_s=20.0),
            "learner": Spec(depends_on=["ledger"], replicas=2, strategy="one_for_all", intensity=50, period_s=5.0),
            "reward": Spec(depends_on=["ledger"], intensity=2),
            "rollout": Spec(depends_on=["ledger", "reward"], replicas=2, intensity=50),
            "tracker": Spec(restart="transient", intensity=50),
        }
        self.world = World(specs, seed)
        self.world.start()
        self.asked = False

    @rule(dt=st.floats(0.01, 0.9), times=st.integers(1, 12))
    def pass_time(self, dt: float, times: int) -> None:
        for _ in range(times):
            if not self.world.over:
                self.world.step(dt)

    @rule(name=NAMES, ended=st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=9)]))
    def crash(self, name: str, ended: Exit) -> None:
        if name in self.world.living:
            self.world.die(name, ended)

    @precondition(lambda self: not self.world.over)
    @rule(name=NAMES, back=st.integers(0, 2))
    def hear_an_old_exit_again(self, name: str, back: int) -> None:
        current = self.world.supervisor.registry.owned[name]
        if back or not current.live:
            commands = self.world.supervisor.on_exit(name, current.generation - back, Exit(signal=9), self.world.now)
            self.world.obey(commands)

    @rule(name=NAMES, manner=st.sampled_from(["mute", "hung", "deaf"]))
    def misbehave(self, name: str, manner: Manner) -> None:
        if name in self.world.living:
            self.world.living[name].manner = manner

    @precondition(lambda self: not self.world.over)
    @rule(name=NAMES, generation=st.integers(0, 30))
    def speak_out_of_turn(self, name: str, generation: int) -> None:
        world = self.world
        current = world.supervisor.registry.owned[name]
        if generation >= current.generation:
            return
        greeting = Greeting(name, generation, f"{name}#{generation}", (current.pid or 0,), "b")
        assert isinstance(world.supervisor.on_hello(greeting, world.now)[0], Refusal)
        assert world.supervisor.on_ready(name, generation, world.now) == []
        assert world.supervisor.on_heartbeat(name, generation, Beat(9), world.now) == []
        assert world.supervisor.condemn(name, generation, "x", world.now) == []

    @precondition(lambda self: not self.world.over)
    @rule()
    def kernel_dies(self) -> None:
        pids = {process.pid for process in self.world.living.values()}
        bereaved = bool(self.world.unheard)
        mark = len(self.world.log)
        self.world.kernel_restart()
        kills = [c for _, c in self.world.log[mark:] if isinstance(c, Kill)]
        assert all(c.signal == signal.SIGTERM and (bereaved or self.asked) for c in kills)
        if not kills:
            assert pids <= {process.pid for process in self.world.living.values()}

    @precondition(lambda self: not self.world.over)
    @rule(name=st.sampled_from(["ledger", "learner", "rollout-1", "reward"]))
    def restart(self, name: str) -> None:
        answer = self.world.supervisor.request_restart(name, "asked", self.world.now)
        if not isinstance(answer, Refusal):
            self.world.obey(answer)

    @precondition(lambda self: not self.world.over)
    @rule(gap=st.floats(1.1, 30.0))
    def kernel_sleeps(self, gap: float) -> None:
        self.world.now += gap
        mark = len(self.world.log)
        self.world.obey(self.world.supervisor.on_tick(self.world.now))
        assert not [c for _, c in self.world.log[mark:] if isinstance(c, Kill)]

    @precondition(lambda self: not self.world.over)
    @rule(mode=st.sampled_from(["drain", "stop", "kill"]), rare=st.integers(0, 9))
    def stop(self, mode: Literal["drain", "stop", "kill"], rare: int) -> None:
        if rare == 0 or self.asked:
            self.asked = True
            self.world.obey(self.world.supervisor.request_stop(mode, "test", self.world.now))

    @invariant()
    def the_supervisor_knows_who_lives(self) -> None:
        for name, process in self.world.living.items():
            instance = self.world.supervisor.registry.owned[name]
            assert (instance.generation, instance.live) == (process.generation, True)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if not self.asked:
            world.run(60.0)
            for child in world.supervisor.roster:
                if child.policy.restart == "permanent" and not child.failed:
                    assert world.state(child.name) == "running", child
            world.obey(world.supervisor.request_stop("drain", "end of test", world.now))
        world.drain_takes_part = False
        begun = world.now
        world.run(200.0)
        assert world.over is not None
        assert world.living == {}
        assert world.now - begun < 3 * (4.0 + 1.0 + 2.0) + 5.0


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
