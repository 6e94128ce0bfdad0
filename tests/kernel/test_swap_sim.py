"""Hot swap in one process: real kernel, real controllers; the old, the new and the kernel killed at every stage."""

import json
from functools import partial
from pathlib import Path

import pytest
from support.sim import SimBus, World
from support.steering_world import events, ownerless_steps, pass_time, person, replayed, stages, swap, until, world

from midflight.kernel.actor import Actor
from midflight.kernel.parts import Parts
from midflight.kernel.refusal import Refusal
from midflight.kernel.spec import ServiceSpec
from midflight.messages.base import Scalar
from midflight.messages.control import Refused
from midflight.messages.knobs import KnobDeclaration, KnobSet
from midflight.messages.live import ControllerDo, SwapStart

DONE = ["starting", "handing", "probation", "draining", "done"]
SEEDS = range(5)


def living(run: World) -> list[str]:
    """Identities of the KL controllers."""
    return sorted(identity for identity, process in run.living.items() if process.name == "kl")


def owner(run: World) -> str | None:
    """Who has the knob."""
    knob = run.kernel.desk.table.knobs.get("kl.coef")
    return knob.owner if knob else None


def ends(run: World) -> int:
    """How many swaps have ended."""
    return sum(stage in ("done", "rolled_back") for stage in stages(run))


def ended(run: World, swaps: int) -> bool:
    """Whether so many swaps have."""
    return ends(run) == swaps


def begun(run: World) -> World:
    """The controller steers."""
    until(run, lambda: owner(run) == "kl#1" and len(events(run, "controller")) > 5)
    return run


def test_a_controller_is_replaced_without_a_gap() -> None:
    """The law's state goes over, the knob passes in one step, and every training step has its decision."""
    run = begun(world(0))
    before = events(run, "controller")[-1]
    swap(run, "pid")
    until(run, lambda: stages(run) == DONE)
    pass_time(run, 3.0)
    assert living(run) == ["kl#2"]
    assert owner(run) == "kl#2"
    assert ownerless_steps(run) == []
    (took,) = events(run, "controller.took")
    assert took["source"] == "kl#2"
    assert '"step"' in took["body"]["state"]
    assert before["body"]["schema"] == took["body"]["schema"] == "kl/1"
    ruled: dict[int, set[str]] = {}
    for one in events(run, "knob"):
        if one["body"]["knob"] == "kl.coef":
            ruled.setdefault(int(one["body"]["reason"].split("step ")[1].split(",")[0]), set()).add(
                one["body"]["author"]
            )
    steps = sorted(ruled)
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert all(verdict.same and verdict.decisions > 10 for verdict in replayed(run))


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        ("broken", "no such law"),
        ("sloth", "a broken law"),
        ("mute", "did nothing"),
        ("beyond", "did nothing"),
        ("hopeless", "that kl#2 tried have failed"),
        ("empty", "Empty.decide returned values for nothing; it steers kl.coef"),
        ("nan", "Nan.decide returned nan for kl.coef: want a finite number"),
        ("lost", "there is no knob 'kl.koef' in this run"),
    ],
)
def test_a_broken_one_is_taken_back(variant: str, why: str) -> None:
    """It cannot load, dies at its first decision, or decides nothing: the old one rules on, with its own parameters."""
    run = begun(world(1))
    swap(run, variant)
    until(run, lambda: stages(run)[-1:] == ["rolled_back"])
    pass_time(run, 3.0)
    assert why in events(run, "swap")[-1]["body"]["why"]
    assert living(run) == ["kl#1"]
    assert owner(run) == "kl#1"
    assert ownerless_steps(run) == []
    assert events(run, "controller")[-1]["source"] == "kl#1"
    assert run.kernel.desk.table.knobs["kl.target_kl"].value == 0.05


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", ["kl#1", "kl#2", "kernel"])
@pytest.mark.parametrize("stage", DONE)
def test_kills_at_every_stage(stage: str, victim: str, seed: int) -> None:
    """Whoever dies whenever: the swap is done or taken back, one controller rules, and no step is without an owner.

    Only the death of the old one before a new one is ready, or of the new one once the old has left, leaves the knob
    alone, at its value, until the restart.
    """
    run = begun(world(seed, loss=0.02, repeat=0.02))
    swap(run, "pid")
    until(run, lambda: stage in stages(run))
    pass_time(run, run.random.uniform(0.0, 0.3))
    if victim == "kernel":
        run.crash_kernel()
    else:
        run.crash(victim)
    until(run, lambda: stages(run)[-1] in ("done", "rolled_back"))
    pass_time(run, 4.0)
    (ruler,) = living(run)
    assert owner(run) == ruler
    assert run.kernel.supervisor.roster.by_name["kl"].swap is None
    alone = (stage, victim) in (("starting", "kl#1"), ("draining", "kl#2"), ("done", "kl#2"))
    assert alone or ownerless_steps(run) == []
    assert all(verdict.same for verdict in replayed(run)), [v.first for v in replayed(run)]


@pytest.mark.parametrize("seed", SEEDS)
def test_many_swaps_over_a_bad_network(seed: int) -> None:
    """Ten in a row, with kills between them, loss and repetition: always one ruler, and replayed to the same."""
    run = begun(world(seed, loss=0.05, repeat=0.05))
    for turn in range(10):
        before = ends(run)
        asked = swap(run, run.random.choice(["pid", "broken", "mute", "sloth"]), 0.5)
        if turn % 3 == 1:
            run.network.at(run.random.uniform(0.0, 2.0), run.crash_kernel)
        while ends(run) == before:
            pass_time(run, 0.1)
            assert run.network.clock < 1000.0
        assert asked.answers
    pass_time(run, 5.0)
    (ruler,) = living(run)
    assert owner(run) == ruler
    assert all(verdict.same for verdict in replayed(run))


def test_no_rollback_while_the_old_one_leaves() -> None:
    """It would give the knob to a process that goes: it is refused until the swap is done."""
    run = begun(world(4))
    swap(run, "pid", 0.5)
    run.network.at(0.0, lambda: None)
    until(run, lambda: "probation" in stages(run))
    run.stop("kl")  # both are stopped: the old one cannot drain
    run.network.join("kl#2", run.living["kl#2"], run.network.pids["kl#2"])
    until(run, lambda: "draining" in stages(run))
    asked = person(run)
    asked.ask(ControllerDo(verb="rollback", name="kl"))
    until(run, lambda: asked.answers)
    answer = asked.answers[0].message
    assert isinstance(answer, Refused)
    assert answer.code == "busy"
    until(run, lambda: stages(run)[-1] == "done")
    pass_time(run, 1.0)
    assert owner(run) == "kl#2"


def test_parameters_come_back_with_a_configuration_that_is_started_again() -> None:
    """The old one died in the probation, then the new one: what was set live is what is in force."""
    run = begun(world(5))
    who = person(run)
    who.ask(KnobSet(knob="kl.target_kl", value=0.07))
    until(run, lambda: run.kernel.desk.table.knobs["kl.target_kl"].value == 0.07)
    swap(run, "pid", 3.0)
    until(run, lambda: "probation" in stages(run))
    run.crash("kl#1")
    pass_time(run, 0.3)
    run.crash("kl#2")
    until(run, lambda: stages(run)[-1] == "rolled_back" and owner(run) == "kl#3")
    pass_time(run, 1.0)
    assert run.kernel.desk.table.knobs["kl.target_kl"].value == 0.07
    assert run.living["kl#3"].node.config.target_kl == 0.07  # type: ignore[attr-defined]


def test_hostile_configurations_are_refused(tmp_path: Path) -> None:
    """The kernel outlives them, and a folder that cannot be written."""
    (tmp_path / "parts").write_text("a file is in the way")
    parts = Parts(tmp_path / "parts", {})
    for text in ("[" * 100_000 + "]" * 100_000, "nonsense", "null", '{"kind": "kl"}'):
        assert isinstance(parts.put("kl", text, []), Refusal)


def test_what_is_refused() -> None:
    """An unknown slot, and a second swap while the first goes on."""
    run = begun(world(2))
    first, second = swap(run, "pid"), swap(run, "pid")
    pass_time(run, 1.0)
    answers = [letter.message for asked in (first, second) for letter in asked.answers]
    assert sum(isinstance(answer, Refused) and answer.code == "busy" for answer in answers) == 1


def test_a_kernel_that_restarts_in_a_probation_keeps_the_new_parameters() -> None:
    """The old one says hello too, and no longer has a say in what its successor's parameters are."""
    run = begun(world(3))
    swap(run, "pid", 5.0)
    until(run, lambda: "probation" in stages(run))
    pass_time(run, 0.5)
    run.crash_kernel()
    pass_time(run, 3.0)
    assert living(run) == ["kl#1", "kl#2"]
    assert run.kernel.desk.table.knobs["kl.controller_type"].value == "pid"
    until(run, lambda: stages(run)[-1] == "done")
    assert run.kernel.desk.table.knobs["kl.controller_type"].value == "pid"
    assert owner(run) == "kl#2"


class Engine(Actor):
    """Works, and applies one knob: `pair.old`, or `pair.new`."""

    def __init__(self, mine: str, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.mine = mine

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        return (KnobDeclaration(name=self.mine, kind="bool", unit="", default=False, description="its own"),)

    def apply_knob(self, name: str, value: Scalar) -> int:
        if name != self.mine:
            raise ValueError(f"{name}: Extra inputs are not permitted")
        return 0

    def work(self, now: float) -> bool:
        self.progress += 1
        return False


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_are_not_told_of_the_knobs_of_those_that_replace_them(seed: int) -> None:
    """There and back: while half of a slot is of one kind and half of another, each half has its own knobs."""
    spec = ServiceSpec(kind="engine", replicas=3, heartbeat_timeout_s=2.0, start_timeout_s=10.0, shutdown_s=1.0)
    makes = {"pair": partial(Engine, "pair.old"), "pair@new": partial(Engine, "pair.new")}
    run = World(seed, {"pair": spec}, {**makes, "pair@old": makes["pair"]})
    until(run, lambda: "pair.old" in run.kernel.desk.table.knobs)
    person(run).ask(KnobSet(knob="pair.old", value=True))
    for variant in ("new", "old"):
        wanted = ends(run) + spec.replicas
        person(run).ask(SwapStart(slot="pair", part_json=json.dumps({"variant": variant}), probation_s=1.0))
        until(run, partial(ended, run, wanted))
        pass_time(run, 3.0)
        assert set(run.kernel.desk.table.knobs) == {f"pair.{variant}"}
    assert not [one["body"] for one in events(run, "knob") if "Extra inputs" in str(one["body"].get("reason"))]
    assert not list(run.kernel.desk.unapplied())
