"""What people ask of running services, and swaps of every kind of slot, decided by the pure state machine."""

from support.supervision import DEMO, Manner, Spec, World, up

from midflight.kernel.commands import Emit, Spawn
from midflight.kernel.refusal import Refusal
from midflight.kernel.restart import Exit

LIVE = {
    **DEMO,
    "learner": Spec(depends_on=["ledger"], restart="transient", significant=True, takeover="restart"),
    "tracker": Spec(takeover="after"),
    "ledger": Spec(significant=True, takeover="never"),
}


def swap(world: World, slot: str, probation_s: float = 1.0, part: str = "new") -> int:
    """Begin a swap."""
    answer = world.supervisor.request_swap(slot, part, probation_s, "test", world.now)
    assert not isinstance(answer, Refusal)
    world.obey(answer[1])
    return answer[0]


def told(world: World, topic: str = "swap") -> list[tuple[str, str]]:
    """(name, stage) of every swap event."""
    found = [c.body for c in world.of(Emit) if isinstance(c, Emit) and c.topic == topic]
    return [(str(body["name"]), str(body["stage"])) for body in found]


def parts(world: World, slot: str) -> dict[str, str]:
    """Process to the configuration it runs."""
    return {
        child.name: world.supervisor.registry.owned[child.name].part for child in world.supervisor.roster.select(slot)
    }


def bad(name: str, manner: Manner) -> World:
    """A world in which the next generation of one process behaves so when it comes from a swap."""
    world = up(LIVE)
    world.manner = lambda spawn: manner if spawn.name == name and spawn.part else "good"
    return world


def test_replicas_are_replaced_one_after_another() -> None:
    """At every moment as many as before are up; the second begins when the first is done."""
    world = up(LIVE)
    swap(world, "rollout")
    world.run(20.0)
    stages = ["starting", "handing", "probation", "draining", "done"]
    assert told(world) == [(name, stage) for name in ("rollout-0", "rollout-1") for stage in stages]
    assert parts(world, "rollout") == {"rollout-0": "new", "rollout-1": "new"}
    assert [(flip.name, flip.old, flip.new) for flip in world.flips] == [("rollout-0", 1, 2), ("rollout-1", 1, 2)]
    assert world.beside == {}


def test_a_later_replica_that_fails_takes_the_earlier_ones_back() -> None:
    """The second never says hello: both run what they ran before."""
    world = bad("rollout-1", "mute")
    swap(world, "rollout")
    world.run(60.0)
    assert ("rollout-1", "rolled_back") in told(world)
    assert parts(world, "rollout") == {"rollout-0": "", "rollout-1": ""}
    assert world.supervisor.parts["rollout"] == ""
    assert {world.state(name) for name in ("rollout-0", "rollout-1")} == {"running"}
    assert world.living["rollout-1"].generation == 1


def test_a_tracker_leaves_before_its_successor_works() -> None:
    """It is told to drain when the new one is loaded; only then does the new one come into force."""
    world = up(LIVE)
    swap(world, "tracker")
    world.run(10.0)
    assert [stage for _, stage in told(world)] == ["starting", "handing", "stopping", "probation", "draining", "done"]
    died = next(i for i, (_, c) in enumerate(world.log) if isinstance(c, Emit) and c.topic == "service.exit")
    flipped = next(i for i, (_, c) in enumerate(world.log) if c in world.flips)
    assert died < flipped
    assert parts(world, "tracker") == {"tracker": "new"}


def test_a_learner_is_drained_and_started_with_the_new_configuration() -> None:
    """There is never a second one."""
    world = up(LIVE)
    swap(world, "learner")
    world.run(10.0)
    assert [stage for _, stage in told(world)] == ["stopping", "probation", "draining", "done"]
    assert [c.beside for c in world.of(Spawn) if isinstance(c, Spawn) and c.name == "learner"] == [False, False]
    assert parts(world, "learner") == {"learner": "new"}
    assert world.over is None


def test_a_learner_that_cannot_start_goes_back_to_its_former_configuration() -> None:
    """Even a mistake of the user's, which would end the run at its start, is taken back."""
    world = bad("learner", "mute")
    swap(world, "learner")
    world.run(2.0)
    world.die("learner", Exit(code=78, tail="learner: no such key"))
    world.run(10.0)
    assert told(world)[-1] == ("learner", "rolled_back")
    assert (parts(world, "learner"), world.state("learner")) == ({"learner": ""}, "running")
    assert world.over is None


def test_what_cannot_be_replaced() -> None:
    """The ledger, a slot that is not there, one that is being replaced, and anything when the run ends."""
    world = up(LIVE)
    asked = world.supervisor.request_swap
    codes = [asked(slot, "new", 1.0, "", world.now) for slot in ("ledger", "rolout")]
    swap(world, "rollout")
    codes.append(asked("rollout", "newer", 1.0, "", world.now))
    world.obey(world.supervisor.request_stop("drain", "test", world.now))
    codes.append(asked("tracker", "new", 1.0, "", world.now))
    assert [answer.code for answer in codes if isinstance(answer, Refusal)] == ["never", "unknown", "busy", "stopping"]


def test_a_slot_without_processes_is_replaced_at_once() -> None:
    """Its next process has the new configuration."""
    world = up(LIVE)
    world.obey(world.supervisor.request_scale("reward", 0, "test", world.now))
    world.run(5.0)
    swap(world, "reward")
    assert told(world)[-1] == ("reward", "done")
    world.obey(world.supervisor.request_scale("reward", 1, "test", world.now))
    world.run(5.0)
    assert parts(world, "reward") == {"reward": "new"}


def test_nothing_else_is_asked_of_what_is_being_replaced() -> None:
    """Drain, restart and scale are refused until it is done or taken back; a pause is not."""
    world = up(LIVE)
    swap(world, "rollout", probation_s=10.0)
    world.run(2.0)
    sup, now = world.supervisor, world.now
    answers = [sup.request_drain("rollout-0", "", now), sup.request_restart("rollout", "", now)]
    answers.append(sup.request_scale("rollout", 5, "", now))
    assert [answer.code for answer in answers if isinstance(answer, Refusal)] == ["busy"] * 3
    assert not isinstance(sup.request_pause("rollout", True, now), Refusal)


def test_the_end_of_the_run_does_not_wait_for_a_swap() -> None:
    """Both generations leave, and nothing is left behind."""
    world = up(LIVE)
    swap(world, "rollout", probation_s=100.0)
    world.run(3.0)
    assert world.beside
    world.obey(world.supervisor.request_stop("drain", "test", world.now))
    world.run(30.0)
    assert world.over
    assert (world.living, world.beside) == ({}, {})


def test_scale_up_and_down() -> None:
    """New replicas get the first free names; those too many drain; a name that comes again has a newer generation."""
    world = up(LIVE)

    def scale(slot: str, n: int) -> set[str]:
        world.obey(world.supervisor.request_scale(slot, n, "test", world.now))
        world.run(8.0)
        return {name for name in world.living if name.startswith(slot)}

    assert scale("rollout", 4) == {"rollout-0", "rollout-1", "rollout-2", "rollout-3"}
    assert scale("rollout", 1) == {"rollout-0"}
    assert scale("rollout", 2) == {"rollout-0", "rollout-1"}
    assert world.living["rollout-1"].generation == 2
    assert scale("reward", 3) == {"reward", "reward-1", "reward-2"}
    assert scale("reward", 1) == {"reward"}
    assert scale("reward", 0) == set()
    assert scale("reward", 1) == {"reward"}
    world.kernel_restart()
    world.run(5.0)
    assert {name for name in world.living if name.startswith("rollout")} == {"rollout-0", "rollout-1"}
    assert {world.state(name) for name in world.living} == {"running"}


def test_a_restarted_kernel_knows_the_replicas_and_the_pause() -> None:
    """What was scaled and paused is so for its successor."""
    world = up(LIVE)
    world.obey(world.supervisor.request_scale("rollout", 3, "test", world.now))
    world.obey(world.supervisor.request_pause("rollout-2", True, world.now))
    world.run(5.0)
    world.kernel_restart()
    world.run(5.0)
    assert world.state("rollout-2") == "running"
    assert [child.paused for child in world.supervisor.roster.select("rollout")] == [False, False, True]
    world.die("rollout-2", Exit(signal=9))
    world.run(5.0)
    assert world.living["rollout-2"].generation == 2


def test_drained_stays_away_until_it_is_restarted() -> None:
    """It left because it was asked to: its policy does not start it again."""
    world = up(LIVE)
    world.obey(world.supervisor.request_drain("rollout-1", "test", world.now))
    world.run(10.0)
    assert world.state("rollout-1") == "stopped"
    world.obey(world.supervisor.request_restart("rollout-1", "test", world.now))
    world.run(5.0)
    assert world.state("rollout-1") == "running"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    """For every request."""
    world = up(LIVE)
    sup = world.supervisor
    for answer in (
        sup.request_drain("rolout-1", "", world.now),
        sup.request_pause("rolout-1", True, world.now),
        sup.request_kill("rolout-1", "", world.now),
    ):
        assert answer == Refusal("unknown", "there is no service 'rolout-1' - did you mean 'rollout-1'?")
    unknown = sup.request_scale("rolout", 2, "", world.now)
    assert unknown == Refusal("unknown", "there is no service 'rolout' - did you mean 'rollout'?")
