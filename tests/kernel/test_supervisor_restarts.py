"""The supervisor: strategies, give-up and what follows from it, restarts on request."""

import pytest
from support.supervision import Manner, Spec, World, crash_storm, up

from midflight.kernel.commands import Emit, RunOver, SendDrain, Spawn
from midflight.kernel.mistake import EXIT_MISTAKE
from midflight.kernel.refusal import Refusal
from midflight.kernel.restart import Exit


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


def lives(world: World, name: str, seconds: float, count: int) -> None:
    """So many lives of one child, each so long."""
    for _ in range(count):
        world.run(seconds)
        if world.over:
            return
        world.die(name, Exit(code=1, tail="RuntimeError: no server is left"))


def test_what_never_did_anything_is_given_up_however_long_its_lives() -> None:
    """Five restarts in 60 s are never met by lives of 25 s: those of which nothing came are not forgotten."""
    world = World({"rollout": Spec(significant=True), "x": Spec()})
    world.manner = lambda spawn: "barren" if spawn.name == "rollout" else "good"
    world.start()
    lives(world, "rollout", 25.0, 20)
    world.run(10.0)
    assert world.over is not None
    assert world.over.code == 1
    assert world.spawned().count("rollout") == 6
    assert "gave up after 6 exits in 12" in world.over.why
    assert "(at most 5 restarts without any work done); last: exit code 1: RuntimeError: no server" in world.over.why


def test_a_barren_life_is_forgotten_when_another_did_something() -> None:
    """Once in five is enough."""
    world = World({"rollout": Spec(significant=True)})
    count = iter(range(1000))
    world.manner = lambda spawn: "good" if next(count) % 5 == 4 else "barren"
    world.start()
    lives(world, "rollout", 25.0, 30)
    assert world.over is None


def test_a_restarted_kernel_remembers_barren_lives() -> None:
    """They are of the child's history, and in the journal."""
    world = World({"rollout": Spec(significant=True)})
    world.manner = lambda spawn: "barren"
    world.start()
    for _ in range(8):
        lives(world, "rollout", 25.0, 1)
        world.step()
        if world.over:
            break
        world.kernel_restart()
    world.run(5.0)
    assert world.over is not None
    assert world.spawned().count("rollout") == 6


def test_what_was_idle_for_long_is_no_failure() -> None:
    """Nobody may have had work for it."""
    world = World({"rollout": Spec(significant=True)})
    world.manner = lambda spawn: "barren"
    world.start()
    lives(world, "rollout", 4000.0, 8)
    assert world.over is None


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


def test_significant_failure_while_draining_fails_the_run() -> None:
    """A learner that crashes in its last checkpoint must not end as a success; a forced end is no failure.

    Who stops last is told so before it is told to leave.
    """
    world = up()
    world.obey(world.supervisor.request_stop("drain", "down", world.now))
    world.die("learner", Exit(code=1, tail="OSError: no space left on device"))
    world.run(20.0)
    assert world.over == RunOver(
        1, "learner failed while the run was ending: exit code 1: OSError: no space left on device"
    )
    states = [c.body for c in world.of(Emit) if isinstance(c, Emit) and c.topic == "run.state"]
    assert [(one["state"], one["mode"], one["code"]) for one in states] == [
        ("stopping", "drain", 0),
        ("stopping", "drain", 1),
        ("over", "drain", 1),
    ]
    ledger = next(at for at, (_, c) in enumerate(world.log) if isinstance(c, SendDrain) and c.name == "ledger")
    assert [c for _, c in world.log[:ledger] if isinstance(c, Emit) and c.body.get("code") == 1 and "mode" in c.body]


def test_significant_replicas_end_the_run_when_the_last_has_left() -> None:
    """One of two finished workers does not end the run; both do."""
    world = up({"worker": Spec(replicas=2, restart="transient", significant=True)})
    world.die("worker-0", Exit(code=0))
    world.run(2.0)
    assert world.over is None
    world.die("worker-1", Exit(code=0))
    world.run(2.0)
    assert world.over == RunOver(0, "worker-1 finished")


def test_a_users_mistake_ends_the_run_at_its_first_exit() -> None:
    """Even an insignificant service: one start, its own words as the reason, exit code 78, nobody else blamed."""
    world = up()
    world.die("tracker", Exit(code=EXIT_MISTAKE, tail="tracker: no such uri\n"))
    world.run(30.0)
    assert world.over == RunOver(EXIT_MISTAKE, "tracker: tracker: no such uri")
    assert world.spawned().count("tracker") == 1


def test_the_run_goes_on_until_the_last_replica_is_given_up() -> None:
    """A significant slot fails the run when nobody is left in it."""
    world = up({"worker": Spec(replicas=2, intensity=0, significant=True)})
    world.die("worker-0", Exit(code=1))
    world.run(5.0)
    assert world.over is None
    world.die("worker-1", Exit(code=1))
    world.run(30.0)
    assert world.over is not None
    assert world.over.code == 1


def test_generations_of_a_lost_journal_are_not_used_again() -> None:
    """What the logs still know of outgrows what a supervisor without a past would count from."""
    world = World({"a": Spec()})
    world.supervisor.outgrow([("a", 7), ("gone", 3), ("a", 5)])
    world.start()
    assert world.living["a"].generation == 8
