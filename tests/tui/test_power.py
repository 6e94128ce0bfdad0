"""Controllers and values: who steers is said as it is, bounds are bounds, a number typed is taken as typed."""

from pathlib import Path
from typing import cast

import pytest
from support import tui_data as data
from support.tui_driver import drive
from support.tui_feed import FakeFeed
from support.tui_scenes import press, settled, typed
from textual.pilot import Pilot
from textual.widgets import Input, Static

from midflight.messages.knobs import KnobDeclaration, KnobSet
from midflight.tui.app import MidflightApp
from midflight.tui.commands import bounds
from midflight.tui.dialogs import ActionDialog, ValueDialog
from midflight.tui.facts import Batch
from midflight.tui.screens.controllers import Controllers
from midflight.tui.widgets.table import Table


def ruler(app: MidflightApp) -> str:
    """The line above the knobs."""
    return str(app.screen.query_one("#ruler", Static).render())


def test_only_the_active_one_steers(tmp_path: Path) -> None:
    """The others would."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "4")
        assert "  steers kl.coef" in ruler(app)
        for _ in ("shadow", "previous"):
            await press(pilot, "down")
            assert "  would steer kl.coef" in ruler(app)

    drive(tmp_path, check)


def test_a_locked_slot_says_so(tmp_path: Path) -> None:
    """In the list, and above the knobs; `L` unlocks it then."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        told = data.controllers().model_copy(update={"locked": ["kl"]})
        feed.pending.append(Batch(controllers=told))
        app.flush()
        await press(pilot, "4")
        assert ruler(app).startswith("kl  locked by operator  kl  would steer kl.coef")
        assert str(app.screen.query_one("#rulers", Table).get_row("kl#1")[2]).endswith("locked by operator")
        await press(pilot, "L")
        assert isinstance(app.screen, ActionDialog)
        assert app.screen.action.title == "unlock kl"

    drive(tmp_path, check)


def test_unlocking_what_is_not_locked_opens_no_dialog(tmp_path: Path) -> None:
    """It is said at once."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "colon", *typed("unlock kl"), "enter")
        assert not isinstance(app.screen, ActionDialog)
        assert [note.message for note in app._notifications][-1] == "kl is not locked"

    drive(tmp_path, check)


def test_get_shows_the_filter_it_set(tmp_path: Path) -> None:
    """And every knob that passes it."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "colon", *typed("get kl.t"), "enter")
        assert cast(Controllers, app.screen).wanted == "kl.t"
        assert "'kl.t'" in ruler(app)
        assert app.screen.query_one("#knobs", Table).row_count == 1

    drive(tmp_path, check)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ({"kind": "bool", "default": True}, "true|false"),
        ({"kind": "choice", "default": "a", "choices": ["a", "b"]}, "a|b"),
        ({"kind": "int", "default": 1, "low": 1, "high": 1_234_567}, "1..1234567"),
        ({"kind": "float", "default": 1.0, "low": 0.0, "high": 1_000_000.0}, "0..1000000"),
        ({"kind": "float", "default": 1.0, "low": 0.001}, "0.001..-"),
    ],
)
def test_bounds_are_what_may_be_set(spec: dict[str, object], shown: str) -> None:
    """Choices, and whole numbers as they are."""
    assert bounds(KnobDeclaration.model_validate({"name": "x", "unit": "", "description": "", **spec})) == shown


def test_digits_typed_on_the_slider_are_a_new_value(tmp_path: Path) -> None:
    """Not lost, and not behind the old one."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "4", "tab", "down", "s", "0")
        assert isinstance(app.screen, ValueDialog)
        await settled(pilot)
        await press(pilot, *typed(".75"))
        field = app.screen.query_one("#value", Input)
        assert (field.value, field.select_on_focus) == ("0.75", False)
        await press(pilot, "enter", "enter")

    ((_, message),) = drive(tmp_path, check).asked
    assert message == KnobSet(knob="kl.target_kl", value=0.75, if_version=7)
