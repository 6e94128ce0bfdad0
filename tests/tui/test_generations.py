"""Two processes of one name, as in a swap: both are seen, each is itself, and the cursor stays with the name."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from support import tui_data as data
from support.tui_feed import app_on
from support.tui_scenes import NARROW, WIDE, environment, press, settled

from midflight.messages.control import ServiceStatus, Status
from midflight.tui.app import MidflightApp
from midflight.tui.facts import Batch, Fact
from midflight.tui.history import Declared
from midflight.tui.host import pids_of
from midflight.tui.rebuild import Rebuild
from midflight.tui.screens.services import Services
from midflight.tui.widgets.table import Table


def with_generations(*generations: tuple[int, str]) -> Status:
    """The status with these processes named kl."""
    status = data.status()
    kl = next(one for one in status.services if one.name == "kl")
    others = [one for one in status.services if one.name != "kl"]
    twins = [kl.model_copy(update={"generation": number, "role": role, "pid": number}) for number, role in generations]
    return status.model_copy(update={"services": [*others, *twins]})


async def told(app: MidflightApp, status: Status) -> None:
    """The app gets this answer."""
    app.feed.pending.append(Batch(status=status))  # type: ignore[attr-defined]
    app.flush()


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("digit", ["1", "5"])
def test_a_swap_is_shown_and_the_cursor_stays_with_the_name(digit: str, size: tuple[int, int], tmp_path: Path) -> None:
    """kl#1, then kl#1 and kl#2, then kl#2 alone."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, _):
            async with app.run_test(size=size) as pilot:
                await settled(pilot)
                await press(pilot, digit)
                name = "#service-table" if digit == "5" else "#services" if size == WIDE else "#services-narrow"
                table = app.screen.query_one(name, Table)
                assert table.choose("kl")
                await settled(pilot)
                for generations in ([(1, "shadow"), (2, "active")], [(2, "active")]):
                    await told(app, with_generations(*generations))
                    await settled(pilot)
                    keys = [str(key.value) for key in table.rows]
                    assert [key for key in keys if key.startswith("kl#")] == [f"kl#{n}" for n, _ in generations]
                    assert table.chosen == f"kl#{generations[0][0]}"

    asyncio.run(check())


def test_several_attached_of_one_name_are_each_itself(tmp_path: Path) -> None:
    """Nothing in the messages forbids it: the screens must not end because of it."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, _):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                status = data.status()
                bang = next(one for one in status.services if one.attached)
                more = [bang.model_copy(update={"generation": number}) for number in (7, 9)]
                await told(app, status.model_copy(update={"services": [*status.services, *more]}))
                await press(pilot, "5")
                screen = cast(Services, app.screen)
                table = screen.query_one("#service-table", Table)
                assert table.choose("bang#9")
                await settled(pilot)
                assert screen.chosen == "bang"
                assert table.chosen == "bang#9"

    asyncio.run(check())


def test_the_machine_is_asked_about_both() -> None:
    """The second of a name under its identity."""
    pids = pids_of(with_generations((1, "shadow"), (2, "active")))
    assert (pids["kl"], pids["kl#2"]) == (1, 2)


def state(name: str, generation: int, state: str, **more: str | int | bool | None) -> Fact:
    """A service's state is told."""
    body = {"name": name, "slot": name, "generation": generation, "state": state, "pid": 1, "restarts": 0, **more}
    return Fact(1, 1, "kernel", "service.state", None, body)


def rebuilt(facts: Sequence[Fact]) -> list[ServiceStatus]:
    """The services after these facts."""
    rebuild = Rebuild("r", data.CONFIG)
    for fact in facts:
        rebuild.fold(fact)
    return rebuild.answers()[0].services


SWAP = [
    state("kl", 1, "running"),
    state("kl", 2, "starting", role="standby"),
    state("kl", 2, "running", role="active"),
    state("kl", 1, "draining"),
    state("kl", 1, "stopped"),
]


ROLLED_BACK = Fact(2, 2, "kernel", "swap", None, {"name": "kl", "stage": "rolled_back"})


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        (SWAP[:2], [(1, "running"), (2, "starting")]),
        (SWAP[:4], [(1, "draining"), (2, "running")]),
        (SWAP, [(2, "running")]),
        ([SWAP[0], state("kl", 1, "backoff")], [(1, "backoff")]),
        ([SWAP[0], state("kl", 1, "stopped", retired=True)], []),
        ([SWAP[0], Fact(2, 2, "kernel", "kernel.boot", None, {"generation": 1}), state("kl", 2, "running")],
         [(2, "running")]),
        ([SWAP[0], Fact(2, 2, "kernel", "kernel.boot", None, {"generation": 2}), state("kl", 2, "running")],
         [(1, "running"), (2, "running")]),
        ([*SWAP[:2], ROLLED_BACK], [(1, "running")]),
        ([SWAP[0], Fact(2, 2, "kernel", "kernel.boot", None, {"generation": 1})], [(1, "gone")]),
        ([*SWAP[:2], ROLLED_BACK, state("kl", 3, "starting")],
         [(1, "running"), (3, "starting")]),
        ([*SWAP[:3], Fact(2, 2, "kernel", "service.exit", None, {"name": "kl", "generation": 1, "code": -9})],
         [(2, "running")]),
    ],
)  # fmt: skip
def test_old_generations_do_not_speak_for_new_ones(facts: list[Fact], shown: list[tuple[int, str]]) -> None:
    """A late `stopped` of the old one leaves the new one running; what lives is shown, and of a name the newest."""
    assert [(one.generation, one.state) for one in rebuilt(facts)] == shown


def knob_fact(topic: str, **body: str | int | float) -> Fact:
    """Something about kl.coef."""
    return Fact(1, 1, "kernel", topic, None, {"knob": "kl.coef", **body})


def test_a_slot_is_locked_while_a_person_holds_its_knobs() -> None:
    """However they came to: a lock, or setting the only knob; and not when someone else has them."""
    rebuild = Rebuild("r", data.CONFIG)
    rebuild.fold(Fact(1, 1, "kl#1", "controller", 1, {"slot": "kl", "standing": "active", "knob": "kl.coef"}))
    for owner, locked in (("kl#1", []), ("operator", ["kl"]), ("kl#1", []), ("operator", ["kl"])):
        rebuild.fold(knob_fact("knob.granted", owner=owner, epoch=1))
        assert rebuild.answers()[2].locked == locked
    rebuild.fold(knob_fact("knob.released", epoch=2))
    assert rebuild.answers()[2].locked == []


def test_who_holds_a_knob_steers() -> None:
    """A successor last told that it stands by; then it was given the knob."""
    rebuild = Rebuild("r", data.CONFIG)
    rebuild.fold(Fact(1, 1, "kl#2", "controller", 1, {"slot": "kl", "standing": "standby", "knob": "kl.coef"}))
    assert [one.standing for one in rebuild.answers()[2].controllers] == ["standby"]
    rebuild.fold(knob_fact("knob.granted", owner="kl#2", epoch=2))
    assert [one.standing for one in rebuild.answers()[2].controllers] == ["active"]


def test_a_knob_has_the_value_of_its_last_declaration_until_it_is_set() -> None:
    """Another implementation brings another value, and other bounds; one that nobody applies is gone."""
    spec = data.knobs().knobs[0].declaration.model_dump() | {"applies": "learner"}
    declared = [
        (0, Declared("kl.coef", spec, 0.1, 0)),
        (2, Declared("kl.coef", {**spec, "high": 7.0}, 0.5, 3)),
        (3, Declared("kl.coef", None)),
    ]
    rebuild = Rebuild("r", data.CONFIG, declared)
    seen: list[tuple[object, ...]] = []
    for at in range(4):
        if at:
            rebuild.fold(knob_fact("knob", value=0.2, version=2) if at < 3 else Fact(1, 1, "x", "note", None, {}))
        seen.append(tuple((k.value, k.version, k.declaration.high) for k in rebuild.answers()[1].knobs))
    assert seen == [((0.1, 0, 100.0),), ((0.2, 2, 100.0),), ((0.5, 3, 7.0),), ()]
