"""The header at every width: alarms, power and the age of the link are never cut off."""

import asyncio
from pathlib import Path

import pytest
from support import tui_data as data
from support.tui_feed import app_on
from support.tui_scenes import environment, settled
from textual.widgets import Static

from midflight.tui.ended import GONE_ALARM
from midflight.tui.facts import Batch
from midflight.tui.header import View, header
from midflight.tui.model import RunModel
from midflight.tui.words import ASCII, UNICODE

WIDTHS = (80, 99, 100, 110, 120, 125, 160)


@pytest.fixture(scope="module")
def model() -> RunModel:
    """The story, with one alarm and long numbers."""
    model = RunModel()
    model.fold(Batch(data.story(), data.status(), data.knobs(), data.controllers(), silent_s=125.0))
    model.step = model.version = 123_456
    return model


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("armed", [None, 299.0, float("inf")])
@pytest.mark.parametrize("run", ["r", "a-run-of-a-very-long-name-1a2b3c4d"])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_matters_is_there_at_every_width(
    width: int, run: str, armed: float | None, frozen: bool, model: RunModel
) -> None:
    """On one line from a hundred columns on, and never wider than the terminal."""
    text = header(model, View("controllers", run, ASCII, armed, frozen, width)).plain
    lines = text.split("\n")
    assert len(lines) == (2 if width < 100 else 1)
    assert all(len(line) <= width - 2 for line in lines)
    power = "RO" if armed is None else "RW 4:59" if armed == 299.0 else "RW"
    assert text.endswith(f" | {power} | 2m05s")
    assert "!2" in text
    assert "step 123456" in text
    assert ("FROZEN" in text) is frozen


def test_the_least_important_goes_first(model: RunModel) -> None:
    """Tokens a second, staleness, then the run is shortened, then the rest of what is measured."""
    told = [header(model, View("overview", "demo-1a2b3c4d", UNICODE, 299.0, True, width)).plain for width in WIDTHS]
    shown = {width: [word in line for word in ("tok/s", "stale", "demo-1a2b3c4d", "reward")]
             for width, line in zip(WIDTHS, told, strict=True)}  # fmt: skip
    assert shown[160] == [True] * 4
    assert all(shown[width] == sorted(shown[width]) for width in (100, 110, 120, 125))
    assert not shown[110][0]


@pytest.mark.parametrize("width", [99, 100, 120])
def test_it_is_so_on_the_screen(width: int, tmp_path: Path) -> None:
    """In a terminal of that width."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, _):
            async with app.run_test(size=(width, 30)) as pilot:
                await settled(pilot)
                app.action_freeze()
                await settled(pilot)
                rows = range(2 if width < 100 else 1)
                widget = app.screen.query_one("#header", Static)
                seen = " ".join(widget.render_line(row).text for row in rows)
                assert all(word in seen for word in ("FROZEN", "⚠1", "RW", "0.2s"))

    asyncio.run(check())


def test_power_and_rates_go_with_the_run() -> None:
    """A terminal that was armed when the run ended can change nothing any more."""
    model = RunModel()
    model.fold(Batch(data.story(), data.status(), silent_s=2.0))
    assert "tok/s | stale" in header(model, View("overview", "r", ASCII, 100.0)).plain
    model.fold(Batch(silent_s=2.0, over=True, ended=True))
    text = header(model, View("overview", "r", ASCII, 100.0)).plain
    assert "- tok/s" in text
    assert "RO" in text
    assert "RW" not in text
    assert GONE_ALARM in model.alarms()
