"""Metrics: what a key asked for is there at once, for all plots alike, and no place in the grid is empty."""

from functools import partial
from pathlib import Path
from typing import cast

from support.tui_driver import drive
from support.tui_feed import FakeFeed
from support.tui_scenes import press, typed
from textual.pilot import Pilot
from textual.widgets import Static

from midflight.tui.app import MidflightApp
from midflight.tui.screens.metrics import Metrics
from midflight.tui.widgets.plot import Plot


def plots(app: MidflightApp) -> list[Plot]:
    """Those that are seen."""
    return [plot for plot in app.screen.query(Plot) if plot.display]


def line(app: MidflightApp) -> str:
    """The line above the plots."""
    return str(app.screen.query_one("#metrics-line", Static).render())


def test_keys_are_drawn_at_once(tmp_path: Path) -> None:
    """Before anything else is dealt with, and with as many points as the new size has room for."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "2")
        screen = cast(Metrics, app.screen)
        for act, names, points in (
            (screen.action_maximise, ["reward_mean"], 120),
            (partial(screen.action_grid, -1), ["reward_mean", "eval/reward", "loss", "kl"], 60),
            (partial(screen.apply_filter, "eval/*"), ["eval/reward"], 6),
        ):
            act()
            assert [plot.plan.title for plot in plots(app) if plot.plan] == names
            first = plots(app)[0].plan
            assert first is not None
            assert len(first.curves[0].points) == points

    drive(tmp_path, check)


def test_no_row_of_the_grid_is_empty(tmp_path: Path) -> None:
    """Fewer plots, or fewer metrics than places: those that are there take the room."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "2")
        grid = app.screen.query_one("#grid").content_region
        for keys in (("slash", *typed("knob/"), "enter"), ("escape", "m", "minus", "minus"), ("plus",)):
            await press(pilot, *keys)
            assert all(plot.plan for plot in plots(app))
            assert max(plot.region.bottom for plot in plots(app)) == grid.bottom
            assert max(plot.region.right for plot in plots(app)) == grid.right

    drive(tmp_path, check)


def test_scale_smoothing_and_axis_hold_for_all_plots_and_are_told(tmp_path: Path) -> None:
    """In the line on top, and in each title with the value that was measured."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "2", "g", "s", "s", "x")
        plans = [plot.plan for plot in plots(app) if plot.plan]
        assert {(plan.log, plan.smoothed, plan.x_name) for plan in plans} == {(True, 0.9, "wall")}
        assert "all plots: x wall  log Y  smooth 0.9" in line(app)
        assert plans[0].curves[0].last == app.model.series["reward_mean"].last
        assert plans[0].curves[0].points[-1].mean != plans[0].curves[0].last

    drive(tmp_path, check)
