"""The supervisor: start order, liveness, the stop ladder, and the end of a run."""

import random
import re

import pytest
from support.supervision import DEMO, Manner, Spec, World, up

from midflight.kernel.commands import Emit, Gone, Kill, RunOver, SendDrain
from midflight.kernel.restart import Exit
from midflight.kernel.status import services
from midflight.kernel.supervisor import Supervisor
from midflight.messages.control import MAX_KIND


def test_starts_by_dependency_left_to_right() -> None:
    """A child starts when its dependencies are ready, and independents start together."""
    world = World(DEMO)
    world.start()
    assert world.spawned() == ["ledger", "tracker"]
    world.run(5.0)
    assert world.spawned() == ["ledger", "tracker", "learner", "reward", "rollout-0", "rollout-1"]


def test_a_service_of_the_longest_kind_is_shown() -> None:
    """What a service may call its kind in its hello, `midflight ps` can tell."""
    kind = "m" * MAX_KIND
    assert [line.kind for line in services(up({"a": Spec(kind=kind)}).supervisor, 0.0)] == [kind]


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


def test_who_stops_last_hears_everybody_else_end() -> None:
    """It is drained when all others are gone, whoever depends on whom; a kill does not wait for that."""
    specs = {"tracker": Spec(stop_last=True), "ledger": Spec(), "learner": Spec(depends_on=["ledger"])}
    world = up(specs)
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    world.run(30.0)
    assert [c.name for c in world.of(Gone) if isinstance(c, Gone)] == ["learner", "ledger", "tracker"]
    specs["tracker"] = Spec(stop_last=True, depends_on=["ledger"])  # which does not keep the ledger here
    leaning = up(specs)
    leaning.obey(leaning.supervisor.request_stop("drain", "end", leaning.now))
    leaning.run(30.0)
    assert [c.name for c in leaning.of(Gone) if isinstance(c, Gone)] == ["learner", "ledger", "tracker"]
    hurried = up(specs)
    hurried.obey(hurried.supervisor.request_stop("kill", "end", hurried.now))
    assert hurried.living == {}


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
    while not world.kills() and world.now - begun < 60.0:
        world.step()
    assert world.now - begun == pytest.approx(30.0, abs=0.5)
    world.run(5.0)
    assert world.over is not None


def test_unkillable_process_does_not_hold_the_end() -> None:
    """A process in uninterruptible sleep is named in the reason, and the run ends all the same."""
    world = up({"a": Spec()})
    world.signalled = lambda name, generation, number: None  # type: ignore[method-assign]
    world.drain_takes_part = False
    world.obey(world.supervisor.request_stop("drain", "end", world.now))
    world.run(30.0)
    assert world.over == RunOver(1, "end; did not die: a#1")


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
    with pytest.raises(ValueError, match=re.escape(text)):
        Supervisor(specs, random.Random(0))
