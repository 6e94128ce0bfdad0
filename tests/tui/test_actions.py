"""Every change, by key and by command, goes through the one dialog, and only what was confirmed is sent."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.tui_feed import FakeFeed, app_on
from support.tui_scenes import WIDE, environment, press, settled, typed
from textual.pilot import Pilot
from textual.screen import ModalScreen

from midflight.messages.base import Message
from midflight.messages.control import RunStop
from midflight.messages.knobs import KnobRelease, KnobSet
from midflight.messages.live import ControllerDo, ServiceDo, ServiceScale
from midflight.tui.app import MidflightApp
from midflight.tui.dialogs import ActionDialog
from midflight.tui.widgets.table import Table

Check = Callable[[Pilot[None], MidflightApp, FakeFeed], Awaitable[None]]
TRACKER = ("5", "down", "down")
"""Services, with the cursor on the paused tracker."""
LEARNER = (*TRACKER, "down", "down", "down", "down")
BANG = ("4", "down")
"""Controllers, with the cursor on the shadow."""


def drive(folder: Path, check: Check, write: bool = True, writable: bool = True) -> FakeFeed:
    """Run an app on the fixed data and let `check` press keys."""

    async def run() -> FakeFeed:
        with environment({}), app_on(folder, write=write, writable=writable) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                await check(pilot, app, feed)
                return feed

    return asyncio.run(run())


def sent(folder: Path, *series: tuple[str, ...]) -> list[list[Message]]:
    """What the kernel was asked after each series of keys, each begun on the overview without a dialog."""
    asked: list[list[Message]] = []

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        for keys in series:
            before = len(feed.asked)
            await press(pilot, *keys)
            asked.append([message for _, message in feed.asked[before:]])
            while isinstance(app.screen, ModalScreen):
                app.pop_screen()
            for table in app.screen.query(Table):
                table.move_cursor(row=0)
            app.screen.set_focus(app.screen.query(Table).first())
            await app.switch_mode("overview")

    drive(folder, check)
    return asked


REVERSIBLE = {
    "resume": ((*TRACKER, "p"), ServiceDo(verb="resume", name="tracker", reason="why")),
    "pause": ((*LEARNER, "p"), ServiceDo(verb="pause", name="learner", reason="why")),
    "pause by command": (("colon", *typed("pause rollout"), "enter"),
                         ServiceDo(verb="pause", name="rollout", reason="why")),
    "set": (("colon", *typed("set clip.range=0.3"), "enter"),
            KnobSet(knob="clip.range", value=0.3, if_version=7, reason="why")),
    "set what is held": (("colon", *typed("set kl.coef=0.01"), "enter"),
                         KnobSet(knob="kl.coef", value=0.01, take=True, reason="why")),
    "release": (("colon", *typed("release optim.lr"), "enter"), KnobRelease(knob="optim.lr")),
    "lock": ((*BANG, "L"), ControllerDo(verb="lock", name="kl", reason="why")),
    "unlock": (("colon", *typed("unlock objectives"), "enter"),
               ControllerDo(verb="unlock", name="objectives", reason="why")),
    "scale up": (("colon", *typed("scale rollout 3"), "enter"), ServiceScale(slot="rollout", replicas=3, reason="why")),
}  # fmt: skip
DISRUPTIVE = {
    "restart": ((*LEARNER, "r"), ServiceDo(verb="restart", name="learner", reason="why")),
    "drain": ((*LEARNER, "D"), ServiceDo(verb="drain", name="learner", reason="why")),
    "promote": ((*BANG, "P"), ControllerDo(verb="promote", name="bang", reason="why")),
    "roll back": ((*BANG, "B"), ControllerDo(verb="rollback", name="kl", reason="why")),
    "detach": ((*BANG, "X"), ControllerDo(verb="detach", name="bang", reason="why")),
    "scale down": (("colon", *typed("scale rollout 1"), "enter"),
                   ServiceScale(slot="rollout", replicas=1, reason="why")),
}  # fmt: skip
DESTRUCTIVE = {
    "kill": ((*LEARNER, "K"), "learner", ServiceDo(verb="kill", name="learner", reason="why")),
    "stop": (("colon", *typed("stop drain"), "enter"), "demo-1a2b3c4d", RunStop(mode="drain", why="why")),
}


def test_reversible_needs_enter(tmp_path: Path) -> None:
    """The dialog, a reason, enter: one message with the reason in it where there is a place for one."""
    asked = sent(tmp_path, *((*keys, *typed("why"), "enter") for keys, _ in REVERSIBLE.values()))
    assert dict(zip(REVERSIBLE, asked, strict=True)) == {name: [message] for name, (_, message) in REVERSIBLE.items()}


def test_disruptive_needs_y_after_the_reason(tmp_path: Path) -> None:
    """A `y` in the reason is a letter; after enter it is a yes; any other key is none."""
    for end, done in ((("x", "enter", "escape"), False), (("y",), True)):
        asked = sent(tmp_path, *((*keys, *typed("why"), "enter", *end) for keys, _ in DISRUPTIVE.values()))
        wanted = {name: [message] if done else [] for name, (_, message) in DISRUPTIVE.items()}
        assert dict(zip(DISRUPTIVE, asked, strict=True)) == wanted


def test_destructive_needs_the_name_typed(tmp_path: Path) -> None:
    """A wrong name does nothing, and `y` is only a letter."""
    for right in (False, True):
        cases = [(*keys, *typed("why"), "enter", *(typed(name) if right else "y"), "enter")
                 for keys, name, _ in DESTRUCTIVE.values()]  # fmt: skip
        asked = sent(tmp_path, *cases)
        wanted = {name: [message] if right else [] for name, (*_, message) in DESTRUCTIVE.items()}
        assert dict(zip(DESTRUCTIVE, asked, strict=True)) == wanted


def test_escape_leaves_everything_as_it_is(tmp_path: Path) -> None:
    """Whatever was typed as a reason."""
    cases = [keys for keys, *_ in (*REVERSIBLE.values(), *DISRUPTIVE.values(), *DESTRUCTIVE.values())]
    assert not any(sent(tmp_path, *((*keys, *typed("why"), "escape") for keys in cases)))


def test_nothing_is_sent_until_it_is_armed(tmp_path: Path) -> None:
    """Read-only: the key says how to arm; after `w` the same key opens the dialog; `w` again disarms."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, *TRACKER, "p")
        assert not isinstance(app.screen, ActionDialog)
        await press(pilot, "w", "p")
        assert isinstance(app.screen, ActionDialog)
        await press(pilot, "escape", "w", "p")
        assert not isinstance(app.screen, ActionDialog)

    assert drive(tmp_path, check, write=False).asked == []


def test_a_finished_run_cannot_be_armed(tmp_path: Path) -> None:
    """`w` says so, and no dialog opens."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "w", "colon", *typed("pause rollout"), "enter")
        assert app.armed_s() is None
        assert not isinstance(app.screen, ActionDialog)

    assert drive(tmp_path, check, write=False, writable=False).asked == []


def test_the_answer_is_told(tmp_path: Path) -> None:
    """Done and refused, with why, show in the decisions feed."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "colon", *typed("set clip.range=0.3"), "enter", "enter")
        assert (app.model.told.lines[-1].text, app.model.told.lines[-1].why) == ("set clip.range: done", "version 8")
        feed.refuse = "rollout is not there"
        await press(pilot, "colon", *typed("pause rollout"), "enter", "enter")
        last = app.model.told.lines[-1]
        assert (last.text, last.why, last.weight) == ("pause rollout: refused", "rollout is not there", "bad")

    drive(tmp_path, check)


def test_the_slider_sets_within_the_bounds(tmp_path: Path) -> None:
    """`s` on a knob: left and right, enter, and the dialog with old -> new."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "4", "tab", "down", "s", "shift+right", "enter")
        dialog = app.screen
        assert isinstance(dialog, ActionDialog)
        assert (dialog.action.old, dialog.action.new) == ("0.2 nats", "0.6325 nats")
        await press(pilot, "enter")

    ((_, message),) = drive(tmp_path, check).asked
    assert message == KnobSet(knob="kl.target_kl", value=0.632456, if_version=7)


def test_a_value_outside_the_bounds_is_refused_where_it_is_typed(tmp_path: Path) -> None:
    """The dialog says the bounds and stays."""
    assert sent(tmp_path, ("colon", *typed("set clip.range=3"), "enter", "enter")) == [[]]


def test_swap_and_attach_run_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process, with the reason; what it printed is shown."""
    ran: list[tuple[str, ...]] = []

    async def fake(words: tuple[str, ...]) -> tuple[int, list[str]]:
        ran.append(tuple(words))
        return 0, ["swap 1 of kl begins"]

    monkeypatch.setattr("midflight.tui.app.run_verb", fake)
    swap = ("colon", *typed("swap kl --with pid.yaml"), "enter", *typed("why"), "enter", "y")
    attach = ("colon", *typed("attach bang.py --slot kl"), "enter", "enter")
    assert sent(tmp_path, swap, attach) == [[], []]
    assert ran == [
        ("swap", "kl", "--with", "pid.yaml", "--no-wait", "--run", str(tmp_path), "--reason", "why"),
        ("ctl", "attach", "bang.py", "--slot", "kl", "-d", "--run", str(tmp_path), "--shadow"),
    ]
