"""The supervisor across kernel deaths: adoption, strays, lost spawns, attached clients."""

import pytest
from support.supervision import Spec, World, crash_storm, up

from midflight.kernel.commands import Emit, Gone, Kill, RunOver, Spawn
from midflight.kernel.registry import Greeting
from midflight.kernel.restart import Exit
from midflight.kernel.supervisor import Listing


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
