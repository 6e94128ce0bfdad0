"""Every screen in a state worth a picture: what the snapshots compare and what the documentation shows."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from textual.events import Key, Paste
from textual.pilot import Pilot
from textual.widgets import Input

from midflight.tui.screens.base import RunScreen

from .tui_feed import app_on

TEXT: Final = "text:"
CHARACTERS: Final = {"colon": ":", "slash": "/", "space": " ", "question_mark": "?", "number_sign": "#"}
WIDE: Final = (132, 38)
NARROW: Final = (80, 30)
SETTINGS: Final = ("NO_COLOR", "MIDFLIGHT_ASCII", "MIDFLIGHT_KEYS", "TEXTUAL_THEME", "COLORTERM", "TERM")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is pressed, on how large a terminal, of what kind; `caption` for the documentation."""

    keys: tuple[str, ...] = ()
    size: tuple[int, int] = WIDE
    environ: Mapping[str, str] = field(default_factory=dict)
    writable: bool = True
    caption: str = ""


def typed(text: str) -> tuple[str, ...]:
    """A text as one step of `press`: pasted, since a key takes Pilot a tenth of a second."""
    return (f"{TEXT}{text}",)


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Each key, or text, once the last one is dealt with."""
    for key in keys:
        if key.startswith(TEXT):
            pilot.app.post_message(Paste(key.removeprefix(TEXT)))
        else:
            pilot.app.post_message(Key(key, CHARACTERS.get(key, key if len(key) == 1 else None)))
        await settled(pilot)


SCENES: Final[dict[str, Scene]] = {
    "overview": Scene(caption="Overview: where the samples are, who works, what was decided"),
    "metrics": Scene(("2",), caption="Metrics: plots with marks where something was changed"),
    "metrics-one": Scene(
        ("2", "slash", *typed("knob/kl"), "enter", "m", "c", "g"),
        caption="A knob with what the shadow would have set, on a log scale",
    ),
    "samples": Scene(("3", "n", "n", "n", "n"), caption="Samples: turns and tool calls, folded"),
    "samples-tokens": Scene(("3", "a", "right", "right"), caption="Tokens coloured by their log-prob gap"),
    "samples-group": Scene(("3", "G"), caption="A group side by side"),
    "controllers": Scene(("4", "c"), caption="Controllers: active, shadow and previous, compared"),
    "dialog-set": Scene(("4", "tab", "s"), caption="A knob's new value, within its bounds"),
    "dialog-reversible": Scene(
        ("colon", *typed("set optim.lr=0.0001"), "enter"), caption="Every change goes through one dialog"
    ),
    "dialog-destructive": Scene(("5", "down", "down", "K"), caption="What cannot be undone wants the name typed"),
    "services": Scene(("5",), caption="Services: logs of all, merged by time"),
    "services-exit": Scene(("5", "down", "right_square_bracket"), caption="Why a service ended comes first"),
    "ledger": Scene(
        ("6", "colon", *typed("sample 700"), "enter"), caption="Ledger: the balance, and one sample's life"
    ),
    "memory": Scene(("7",), caption="Memory: processes, shared memory, disk"),
    "help": Scene(("question_mark",), caption="Keys and commands"),
    "finished": Scene(("comma",) * 40, writable=False, caption="A finished run at an earlier moment"),
    "narrow": Scene(size=NARROW, caption="Less than a hundred columns"),
    "no-colour": Scene(size=NARROW, environ={"NO_COLOR": "1", "MIDFLIGHT_ASCII": "1"}, caption="Plain characters"),
}


@contextmanager
def environment(environ: Mapping[str, str]) -> Iterator[None]:
    """These settings, and no others of a person's own."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    for name in SETTINGS:
        os.environ.pop(name, None)
    os.environ.update({"XDG_CONFIG_HOME": "/nonexistent", "MIDFLIGHT_ASCII": "0", **environ})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.environ.pop("XDG_CONFIG_HOME", None)


LOOKS = 500
"""How often a screen is looked at before it is taken as it is."""


async def settled(pilot: Pilot[None]) -> None:
    """Nothing is being worked on any more, and the screen shows what is known."""
    await pilot.pause()
    for _ in range(LOOKS):
        while any(not worker.is_finished for worker in pilot.app.workers):
            await pilot.app.workers.wait_for_complete()
            await pilot.pause()
        screen = pilot.app.screen
        if not isinstance(screen, RunScreen) or screen.current:
            return
        await pilot.pause(0.01)


async def picture(scene: Scene, folder: Path) -> str:
    """The scene as SVG, without what differs from run to run."""
    with environment(scene.environ), app_on(folder, writable=scene.writable) as (app, _):
        async with app.run_test(size=scene.size) as pilot:
            await settled(pilot)
            await press(pilot, *scene.keys)
            for field_ in app.screen.query(Input):
                field_.cursor_blink = False
            app.flush()
            await settled(pilot)
            svg = app.export_screenshot(title="midflight tui")
    return re.sub(r"terminal-\d+", "terminal", svg)
