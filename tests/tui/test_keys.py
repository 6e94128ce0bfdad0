"""Keys: none acts while an input has the focus, typed-ahead text is text, a person's own map, escape walks back."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.tui_feed import FakeFeed, app_on
from support.tui_scenes import WIDE, environment, press, settled, typed
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

from midflight.tui.app import MidflightApp, binding_ids
from midflight.tui.dialogs import Page
from midflight.tui.keys import KeymapError, keymap_path, load_keymap
from midflight.tui.screens import SCREENS
from midflight.tui.screens.controllers import Controllers

Check = Callable[[Pilot[None], MidflightApp, FakeFeed], Awaitable[None]]


def drive(folder: Path, check: Check, environ: dict[str, str] | None = None) -> FakeFeed:
    """Run an app on the fixed data and let `check` press keys."""

    async def run() -> FakeFeed:
        with environment(environ or {}), app_on(folder) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                await check(pilot, app, feed)
        return feed

    return asyncio.run(run())


EVERY = "1234567:/nN?yeow,.qprDKs[]\\fmgxcv+-TGtaAPBLXu# "


@pytest.mark.parametrize("opened", ["colon", "slash"])
def test_no_key_acts_while_an_input_has_the_focus(opened: str, tmp_path: Path) -> None:
    """Every key that does something anywhere, typed into the prompt, is text."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "5", opened)
        before = (app.current_mode, app.armed_s(), app.frozen, app.screen)
        for character in EVERY:
            app.post_message(Key("space" if character == " " else character, character))
        await settled(pilot)
        assert app.screen.query_one("#prompt-input", Input).value == EVERY
        assert (app.current_mode, app.armed_s(), app.frozen, app.screen) == before

    assert drive(tmp_path, check).asked == []


def test_what_is_typed_in_one_burst_is_text(tmp_path: Path) -> None:
    """Over a slow line `:kill reward` comes as one packet: none of its letters may act as a key."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "5", "down", "down")
        for character in ":pause qw":
            app.post_message(Key({":": "colon", " ": "space"}.get(character, character), character))
        await settled(pilot)
        assert app.screen.query_one("#prompt-input", Input).value == "pause qw"
        assert app.current_mode == "services"

    assert drive(tmp_path, check).asked == []


def test_digits_show_the_screens(tmp_path: Path) -> None:
    """1 to 7, and by command."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        for digit, name in enumerate(SCREENS, 1):
            await press(pilot, str(digit))
            assert app.current_mode == name
            assert app.shown is not None
            assert name == app.shown.NAME
        await press(pilot, "colon", *typed("overview"), "enter")
        assert app.current_mode == "overview"

    wants = drive(tmp_path, check).wants
    assert wants[-1] == (False, True)
    assert (True, False) in wants


def test_escape_walks_back(tmp_path: Path) -> None:
    """The help, the comparison, the filter, then the overview."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "4", "slash", *typed("kl"), "enter", "c", "question_mark")
        assert isinstance(app.screen, Page)
        await press(pilot, "escape")
        assert isinstance(app.screen, Controllers)
        assert (app.screen.wanted, app.screen.comparing) == ("kl", True)
        await press(pilot, "escape", "escape")
        assert (app.screen.wanted, app.screen.comparing, app.current_mode) == ("", False, "controllers")
        await press(pilot, "escape")
        assert app.current_mode == "overview"

    drive(tmp_path, check)


def test_freeze_keeps_every_screen_at_one_moment(tmp_path: Path) -> None:
    """What comes meanwhile is seen when it is let go; until then all screens and keys work on what was."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "space")
        before = app.export_screenshot()
        batch = feed.full()
        batch.facts = []
        assert batch.status is not None
        gone = [one for one in batch.status.services if one.name != "tracker"]
        batch.status = batch.status.model_copy(update={"services": gone})
        feed.pending.append(batch)
        app.flush()
        await settled(pilot)
        assert app.export_screenshot() == before
        await press(pilot, "5")
        assert "tracker#1" in app.export_screenshot()
        await press(pilot, "1", "space")
        assert app.model.status is batch.status
        assert "tracker#1" not in app.export_screenshot()

    drive(tmp_path, check)


def test_leaving_asks_nothing_of_the_run(tmp_path: Path) -> None:
    """`q` and `:q`."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "q")
        assert not app.is_running or app._exit

    assert drive(tmp_path, check).asked == []


def test_a_person_may_have_other_keys(tmp_path: Path) -> None:
    """The new key acts, the old one does not, and the help says so."""
    path = tmp_path / "keys.toml"
    path.write_text('[global]\nmemory = "m,f7"\n"help" = "f1"\n')

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "7")
        assert app.current_mode == "overview"
        await press(pilot, "f7")
        assert app.current_mode == "memory"
        await press(pilot, "f1")
        assert isinstance(app.screen, Page)
        assert any("m,f7" in line.plain for line in app.screen.lines)

    drive(tmp_path, check, {"MIDFLIGHT_KEYS": str(path)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[global]\nhlep = "f1"', "did you mean 'global.help'"),
        ("[global]\nhelp = 3", "global.help: want a key"),
        ("[global", "keys.toml"),
        ('[services]\nrestart = "p"', "services.restart takes the key 'p' from services.pause"),
        ('[services]\nlevel = "f9,q"', "services.level takes the key 'q' from global.leave"),
        ('[metrics]\nlog = "["', "from metrics.previous_mark"),
        ('[global]\nfilter = "g"', "global.filter takes the key 'g' from "),
    ],
)
def test_a_mistake_in_the_map_is_one_clear_error(text: str, said: str, tmp_path: Path) -> None:
    """It names the file and the nearest id."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeymapError, match=said):
        load_keymap(path, binding_ids())


def test_two_bindings_may_change_places(tmp_path: Path) -> None:
    """A key that its owner gave up is free; one of a dialog is another."""
    path = tmp_path / "keys.toml"
    path.write_text('[services]\nrestart = "p"\npause = "r"\nkill = "escape"\n[global]\nback = "f2"\n')
    assert load_keymap(path, binding_ids())["services.pause"] == "r"


def test_where_the_map_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, then the configuration folder; no file there is no map, but one named must be there."""
    assert keymap_path({"MIDFLIGHT_KEYS": "/k.toml"}) == Path("/k.toml")
    assert keymap_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/midflight/keys.toml")
    assert load_keymap(tmp_path / "none.toml", {"a": "b"}) == {}
    monkeypatch.setenv("MIDFLIGHT_KEYS", "x")
    with pytest.raises(KeymapError, match="no such key map"):
        load_keymap(tmp_path / "none.toml", {"a": "b"})


def test_every_binding_can_be_mapped() -> None:
    """Each has an id of its own."""
    from midflight.tui.keys import GLOBAL

    owners = [list(GLOBAL), *(screen.__dict__.get("BINDINGS", []) for screen in SCREENS.values())]
    ids = [binding.id for bindings in owners for binding in bindings]
    assert None not in ids
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(binding_ids())


def test_an_editor_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot be lent, or no editor at all: a toast."""
    monkeypatch.setenv("EDITOR", "true")
    monkeypatch.delenv("VISUAL", raising=False)

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "e")
        assert [note.severity for note in app._notifications] == ["error"]
        monkeypatch.delenv("EDITOR")
        await press(pilot, "e")
        assert [note.message for note in app._notifications][-1] == "no editor: set $EDITOR"

    drive(tmp_path, check)


def test_the_palette_knows_every_screen_and_command(tmp_path: Path) -> None:
    """And themes, which are Textual's."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {f"show {name}" for name in SCREENS} <= titles
        assert any(title.startswith(":promote") for title in titles)
        assert "Theme" in titles
        await press(pilot, "ctrl+p")
        assert type(app.screen).__name__ == "CommandPalette"

    drive(tmp_path, check)


def test_a_flush_that_comes_when_the_widgets_are_gone_does_nothing(tmp_path: Path) -> None:
    """As at the end, when the timer fires once more."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await app.screen.query("*").remove()
        for _ in range(5):
            app.flush()

    drive(tmp_path, check)
