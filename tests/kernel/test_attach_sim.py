"""Controllers from outside, in one process: attach, shadow, promote, roll back, lock, detach, and every way to go."""

import pytest
from support.sim import World
from support.steering_world import (
    Person,
    attach,
    events,
    ownerless_steps,
    pass_time,
    person,
    replayed,
    swap,
    until,
    world,
)

from midflight.kernel.mistake import UserMistake
from midflight.messages.control import Done, Refused
from midflight.messages.knobs import KnobSet
from midflight.messages.live import ControllerDo, Controllers, ControllersGet
from midflight.services.controllers.controller import Controller

SEEDS = range(5)


def owner(run: World) -> str | None:
    """Who has the knob."""
    knob = run.kernel.desk.table.knobs.get("kl.coef")
    return knob.owner if knob else None


def steered(seed: int = 0, **network: float) -> World:
    """The topology's controller steers."""
    run = world(seed, **network)
    until(run, lambda: owner(run) == "kl#1" and len(events(run, "controller")) > 3)
    return run


def shadowed(seed: int = 0, **network: float) -> tuple[World, Controller, Person]:
    """And another decides beside it, without power."""
    run = steered(seed, **network)
    one = attach(run, "pid", shadow=True)
    until(run, lambda: any(e["source"] == "pid#7" for e in events(run, "controller")))
    return run, one, person(run)


def ask(run: World, who: Person, verb: str, name: str) -> Done | Refused:
    """The kernel's answer."""
    before = len(who.answers)
    who.ask(ControllerDo(verb=verb, name=name, reason="test"))  # type: ignore[arg-type]
    until(run, lambda: len(who.answers) > before)
    answer = who.answers[-1].message
    assert isinstance(answer, Done | Refused)
    return answer


def standings(run: World) -> dict[str, str]:
    """Name to standing."""
    return {one.name: run.kernel.controllers.standing(one) for one in run.kernel.controllers.all()}


def test_a_shadow_has_no_power() -> None:
    """It decides at every step and sets nothing; its parameters are knobs of its own name."""
    run, _, who = shadowed()
    pass_time(run, 2.0)
    assert owner(run) == "kl#1"
    assert standings(run) == {"kl": "active", "pid": "shadow"}
    assert [e["body"]["reason"] for e in events(run, "controller.attached")] == ["to see"]
    assert {e["body"]["author"] for e in events(run, "knob")} == {"kl#1"}
    assert run.kernel.desk.table.knobs["pid.target_kl"].spec.applies == "pid"
    who.ask(KnobSet(knob="pid.target_kl", value=0.5, reason="test"))
    until(run, lambda: events(run, "controller.param"))
    (told,) = [e for e in events(run, "knob.applied") if e["body"]["knob"] == "pid.target_kl" and e["body"]["version"]]
    assert told["body"]["step"] > 0
    assert all(verdict.same and verdict.decisions > 5 for verdict in replayed(run))


def test_promote_and_roll_back() -> None:
    """Power passes in one step, with the newest decision; who ruled before decides on and has it back at once."""
    run, one, who = shadowed()
    assert isinstance(ask(run, who, "promote", "pid"), Done)
    assert owner(run) == "pid#7"
    assert standings(run) == {"pid": "active", "kl": "previous"}
    until(run, lambda: any(e["body"]["author"] == "pid#7" for e in events(run, "knob")))
    granted = next(e for e in events(run, "knob.granted") if e["body"]["owner"] == "pid#7")
    first = next(e for e in events(run, "knob") if e["body"]["author"] == "pid#7")
    between = [e for e in events(run, "metrics") if granted["seq"] < e["seq"] < first["seq"]]
    assert between == []
    pass_time(run, 1.0)
    assert one.role == "active"
    answer = ask(run, who, "promote", "pid")
    assert isinstance(answer, Refused)
    assert answer.code == "active"
    assert isinstance(ask(run, who, "rollback", "kl"), Done)
    assert (owner(run), standings(run)["pid"]) == ("kl#1", "shadow")
    pass_time(run, 1.0)
    assert ownerless_steps(run) == []
    assert all(verdict.same for verdict in replayed(run))
    told = [e["topic"] for e in events(run) if e["topic"].startswith("controller.")]
    assert [t for t in told if t in ("controller.promoted", "controller.rolled_back")] == [
        "controller.promoted",
        "controller.rolled_back",
    ]


def test_a_rollback_without_a_past_is_refused() -> None:
    """Nobody ruled before, and nothing was swapped."""
    run, _, who = shadowed()
    answer = ask(run, who, "rollback", "kl")
    assert isinstance(answer, Refused)
    assert answer.code == "nothing"


@pytest.mark.parametrize("how", ["detach", "silence", "death of the kernel, then silence"])
def test_when_it_leaves_the_knob_falls_back(how: str) -> None:
    """To the controller that ruled before, at once or after ten seconds of silence; its parameters go with it."""
    run, _, who = shadowed()
    ask(run, who, "promote", "pid")
    pass_time(run, 1.0)
    if how == "detach":
        assert isinstance(ask(run, who, "detach", "pid"), Done)
        assert owner(run) == "kl#1"
    else:
        run.network.crash("pid#7")
        if how != "silence":
            run.crash_kernel()
        until(run, lambda: owner(run) == "kl#1", 30.0)
    pass_time(run, 1.0)
    assert "pid" not in standings(run)
    assert "pid.target_kl" not in run.kernel.desk.table.knobs
    assert ownerless_steps(run) == []
    assert events(run, "controller")[-1]["source"] == "kl#1"
    assert "pid#7" not in run.network.nodes


@pytest.mark.parametrize("ruling", [True, False])
def test_it_outlives_the_kernel(ruling: bool) -> None:
    """It says hello again, and is what it was; nobody else has the knob meanwhile."""
    run, one, who = shadowed()
    if ruling:
        ask(run, who, "promote", "pid")
    pass_time(run, 1.0)
    for _ in range(2):
        run.crash_kernel()
        pass_time(run, 3.0)
    assert one.exit_code is None
    assert len(events(run, "controller.attached")) == 1
    assert standings(run) == ({"pid": "active", "kl": "previous"} if ruling else {"pid": "shadow", "kl": "active"})
    assert ownerless_steps(run) == []
    last = {e["source"]: e["body"]["standing"] for e in events(run, "controller")[-4:]}
    assert last == ({"pid#7": "active", "kl#1": "shadow"} if ruling else {"pid#7": "shadow", "kl#1": "active"})
    assert all(verdict.same for verdict in replayed(run))


def test_one_that_has_left_says_nothing_more() -> None:
    """What a detached process still posts is refused, and it ends."""
    run, one, who = shadowed()
    one.on_drain = lambda: None  # type: ignore[method-assign]
    run.network.at(0.0, lambda: setattr(one, "draining", None))
    ask(run, who, "detach", "pid")
    one.draining, one.exit_code = None, None
    run.network.join("pid#7", run.network.nodes.get("pid#7") or one, 5000)
    before = len([e for e in events(run) if e["source"] == "pid#7"])
    one.event("controller", {"slot": "kl", "at_step": 1})
    pass_time(run, 2.0)
    assert len([e for e in events(run) if e["source"] == "pid#7"]) == before


def test_locked_while_it_was_taken_for_a_while() -> None:
    """The lock lasts beyond the steps that were asked for before it."""
    run, _, who = shadowed()
    who.ask(KnobSet(knob="kl.coef", value=0.3, take=True, for_steps=5))
    until(run, lambda: owner(run) == "operator")
    ask(run, who, "lock", "kl")
    pass_time(run, 3.0)
    assert (owner(run), run.kernel.desk.table.knobs["kl.coef"].value) == ("operator", 0.3)
    assert isinstance(ask(run, who, "unlock", "kl"), Done)


def test_the_topologys_controller_takes_what_nobody_steers() -> None:
    """However it came to be without power."""
    run = steered()
    run.kernel.supervisor.registry.owned["kl"].shadow = True
    run.kernel.desk.give_back(["kl.coef"], "kl#1", "test")
    until(run, lambda: owner(run) == "kl#1")


def test_attached_without_shadow_it_takes_the_knob() -> None:
    """As soon as it is ready; the topology's controller waits."""
    run = steered()
    attach(run, "pid", shadow=False)
    until(run, lambda: owner(run) == "pid#7")
    pass_time(run, 1.0)
    assert standings(run) == {"pid": "active", "kl": "previous"}
    assert ownerless_steps(run) == []


def test_a_knob_that_is_not_there_is_refused() -> None:
    """By name, with those there are."""
    run = steered()
    del run.kernel.desk.table.knobs["kl.coef"]
    attach(run, "pid", shadow=True)
    with pytest.raises(UserMistake, match=r"no knob 'kl\.coef' in this run; there are: kl\."):
        pass_time(run, 1.0)
    assert "pid" not in standings(run)


def test_locked_by_hand() -> None:
    """Nobody can be promoted; on unlock the ruler goes on, from the value that was held."""
    run, _, who = shadowed()
    assert isinstance(ask(run, who, "lock", "kl"), Done)
    assert owner(run) == "operator"
    held = run.kernel.desk.table.knobs["kl.coef"].value
    pass_time(run, 2.0)
    assert run.kernel.desk.table.knobs["kl.coef"].value == held
    for verb, name in (("promote", "pid"), ("rollback", "kl")):
        answer = ask(run, who, verb, name)
        assert isinstance(answer, Refused)
        assert answer.code == "locked"
    who.ask(ControllersGet())
    until(run, lambda: isinstance(who.answers[-1].message, Controllers))
    listed = who.answers[-1].message
    assert isinstance(listed, Controllers)
    assert listed.locked == ["kl"]
    assert isinstance(ask(run, who, "unlock", "kl"), Done)
    assert owner(run) == "kl#1"
    pass_time(run, 1.0)
    first = next(e for e in events(run, "knob") if e["body"]["old"] == held and e["seq"] > 0)
    assert first["body"]["value"] == pytest.approx(float(str(held)), rel=0.05)
    assert ownerless_steps(run) == []


def test_rolled_back_after_a_swap_that_is_done() -> None:
    """The former configuration is swapped in again."""
    run = steered()
    swap(run, "pid", 0.5)
    until(run, lambda: any(e["body"]["stage"] == "done" for e in events(run, "swap")))
    who = person(run)
    who.ask(ControllerDo(verb="rollback", name="kl"))
    until(run, lambda: sum(e["body"]["stage"] == "done" for e in events(run, "swap")) == 2)
    assert owner(run) == "kl#3"
    assert run.kernel.desk.table.knobs["kl.controller_type"].value == "exponential"
    assert ownerless_steps(run) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", ["kernel", "kl", "pid"])
@pytest.mark.parametrize("verb", ["promote", "rollback", "detach"])
def test_kills_around_a_change_of_power(verb: str, victim: str, seed: int) -> None:
    """Over a bad network; afterwards exactly one controller has the knob, and it is replayed to the same decisions."""
    run, _, who = shadowed(seed, loss=0.03, repeat=0.03)
    if verb != "promote":
        who.ask(ControllerDo(verb="promote", name="pid"))
        until(run, lambda: owner(run) == "pid#7")
    run.network.at(
        run.random.uniform(0.0, 0.1), lambda: run.crash_kernel() if victim == "kernel" else kill(run, victim)
    )
    who.ask(ControllerDo(verb=verb, name="kl" if verb == "rollback" else "pid"))  # type: ignore[arg-type]
    pass_time(run, 40.0)
    named = [one.identity for one in run.kernel.controllers.all()]
    assert owner(run) in named
    if victim != "kl":  # the restart of the only controller leaves the knob at its value meanwhile
        assert ownerless_steps(run) == []
    assert all(verdict.same for verdict in replayed(run)), [v.first for v in replayed(run)]


def kill(run: World, name: str) -> None:
    """SIGKILL, of an attached one too."""
    run.crash(name)
    run.network.crash(f"{name}#7")


def test_a_swap_of_the_one_that_waits() -> None:
    """While one from outside rules, the topology's controller is replaced: its successor waits in its place."""
    run, _, who = shadowed()
    ask(run, who, "promote", "pid")
    swap(run, "pid", 0.5)
    until(run, lambda: any(e["body"]["stage"] == "done" for e in events(run, "swap")))
    pass_time(run, 1.0)
    assert owner(run) == "pid#7"
    ask(run, who, "detach", "pid")
    assert owner(run) == "kl#2"
    pass_time(run, 1.0)
    assert ownerless_steps(run) == []
    assert events(run, "knob")[-1]["body"]["author"] == "kl#2"


@pytest.mark.parametrize(("fallback", "ruler", "value"), [("hold", None, 0.123), ("default", None, 0.2)])
def test_a_fallback_of_its_own(fallback: str, ruler: str | None, value: float) -> None:
    """When it leaves, its knobs do as it said: hold their value, or return to the default; nobody is granted them."""
    run = steered()
    one = attach(run, "pid", shadow=True)
    one.config = one.config.model_copy(update={"fallback": fallback})
    who = person(run)
    until(run, lambda: "pid" in standings(run))
    ask(run, who, "promote", "pid")
    one.paused = True
    who.ask(KnobSet(knob="kl.coef", value=0.123, epoch=None, take=True))
    until(run, lambda: run.kernel.desk.table.knobs["kl.coef"].value == 0.123)
    run.kernel.desk.table.release("kl.coef", "operator", None)
    run.crash("kl")
    run.kernel.supervisor.roster.by_name["kl"].wanted = False
    pass_time(run, 0.2)
    ask(run, who, "detach", "pid")
    assert (owner(run), run.kernel.desk.table.knobs["kl.coef"].value) == (ruler, value)
