"""The line at the bottom: what `tab` makes of it, where the cursor is, how it is left; what `y` finds to copy."""

from pathlib import Path

import pytest
from support import tui_data as data
from support.tui_driver import drive
from support.tui_feed import FakeFeed
from support.tui_scenes import press, settled, typed
from textual.pilot import Pilot
from textual.widgets import Input

from midflight.tui.app import MidflightApp
from midflight.tui.complete import common, completions
from midflight.tui.dialogs import ActionDialog
from midflight.tui.facts import Batch
from midflight.tui.model import RunModel
from midflight.tui.screens.controllers import Controllers
from midflight.tui.screens.services import Services
from midflight.tui.widgets.prompt import Prompt


def field(app: MidflightApp) -> Input:
    """Where it is typed."""
    return app.screen.query_one("#prompt-input", Input)


def toasts(app: MidflightApp) -> list[str]:
    """What was said."""
    return [note.message for note in app._notifications]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("pau", ["pause "]),
        ("set kl.", ["set kl.coef=", "set kl.target_kl="]),
        ("get cl", ["get clip.range"]),
        ("pause rollout-", ["pause rollout-0", "pause rollout-1"]),
        ("scale ro", ["scale rollout "]),
        ("promote ", ["promote bang", "promote pid"]),
        ("detach ", ["detach bang"]),
        ("rollback ", ["rollback kl"]),
        ("unlock ", ["unlock objectives"]),
        ("swap kl ", ["swap kl --with "]),
        ("attach a.py --slot ", ["attach a.py --slot kl"]),
        ("attach a.py --slot kl --s", ["attach a.py --slot kl --steer "]),
        ("stop d", ["stop drain"]),
        ("sample 7", []),
        ("nothing ", []),
    ],
)
def test_what_a_line_may_become(line: str, becomes: list[str]) -> None:
    """Commands, and what each is about."""
    model = RunModel()
    model.fold(Batch([], data.status(), data.knobs(), data.controllers()))
    assert completions(line, model) == becomes


def test_before_the_kernel_answered_there_are_only_commands() -> None:
    """And no failure."""
    assert completions("set ", RunModel()) == []
    assert completions("sc", RunModel()) == ["scale "]
    assert [common(lines) for lines in ([], ["ab"], ["abc", "abd"], ["x", "y"])] == ["", "ab", "ab", ""]


def test_tab_completes_and_stays(tmp_path: Path) -> None:
    """As far as there is one way; then it says the ways; the focus never leaves the input."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "colon", *typed("pau"))
        assert field(app).suggester is not None
        await press(pilot, "tab")
        assert field(app).value == "pause "
        await press(pilot, *typed("rol"), "tab")
        assert field(app).value == "pause rollout"
        await press(pilot, "tab", "shift+tab")
        assert app.focused is field(app)
        assert toasts(app)[-1] == "rollout-0, rollout-1"
        await press(pilot, *typed("-7"), "tab")
        assert toasts(app)[-1] == "nothing to complete"
        await press(pilot, "escape", "5", "backslash", *typed("w"), "tab")
        assert field(app).value == "warning"
        assert "critical" in field(app).placeholder
        await press(pilot, "escape", "slash", *typed("roll"), "tab")
        assert (field(app).value, field(app).suggester, app.focused) == ("roll", None, field(app))

    assert drive(tmp_path, check).asked == []


def test_escape_clears_and_closes_it_even_when_the_focus_is_elsewhere(tmp_path: Path) -> None:
    """As after a click."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "5", "colon", *typed("kill reward"))
        app.screen.set_focus(app.screen.query_one("#service-table"))
        await settled(pilot)
        await press(pilot, "escape")
        assert not app.screen.query_one(Prompt).display
        assert (field(app).value, app.current_mode) == ("", "services")
        await press(pilot, "escape")
        assert app.current_mode == "overview"

    assert drive(tmp_path, check).asked == []


def test_attaching_begins_where_the_file_is_typed(tmp_path: Path) -> None:
    """No word to delete first, and the slot is there already."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "4", "a", *typed("bang.py"))
        assert field(app).value == "attach bang.py --slot kl"
        await press(pilot, "enter")
        assert isinstance(app.screen, ActionDialog)
        assert app.screen.action.words[:5] == ("ctl", "attach", "bang.py", "--slot", "kl")

    drive(tmp_path, check)


@pytest.mark.parametrize("keys", [("4", "tab", "s"), ("4", "tab", "a"), ("5", "down", "s")])
def test_read_only_is_said_before_anything_is_asked(keys: tuple[str, ...], tmp_path: Path) -> None:
    """Neither a value nor a file nor a number."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, *keys)
        assert isinstance(app.screen, Controllers if keys[0] == "4" else Services)
        assert not app.screen.query_one(Prompt).display
        assert toasts(app)[-1].startswith("read-only")

    drive(tmp_path, check, write=False)


@pytest.mark.parametrize(
    ("keys", "copied"),
    [
        (("1",), "reward"),
        (("2", "right"), "metric,step,ns,low,high,mean\neval/reward,20,"),
        (("4",), "kl"),
        (("7",), "learner\t910M"),
    ],
)
def test_copying_takes_what_is_chosen(keys: tuple[str, ...], copied: str, tmp_path: Path) -> None:
    """A row, or the numbers of a plot."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, *keys, "y")
        assert copied in app.clipboard
        assert toasts(app)[-1].startswith("copied: ")

    drive(tmp_path, check)


def test_nothing_to_copy_is_said(tmp_path: Path) -> None:
    """And the clipboard is left alone."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "2", "slash", *typed("no such metric"), "enter", "y")
        assert (app.clipboard, toasts(app)[-1]) == ("", "there is nothing to copy here")

    drive(tmp_path, check)
