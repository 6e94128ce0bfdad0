"""What the keys of each screen do to what is seen."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
from support.tui_feed import FakeFeed, app_on
from support.tui_scenes import NARROW, WIDE, environment, press, settled, typed
from textual.pilot import Pilot
from textual.widgets import Input, Static

from midflight.messages.samples import LedgerGet
from midflight.tui.app import MidflightApp
from midflight.tui.dialogs import Page
from midflight.tui.screens.ledger import Ledger
from midflight.tui.screens.metrics import Metrics
from midflight.tui.screens.overview import Overview
from midflight.tui.screens.samples import Samples
from midflight.tui.screens.services import Services
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.plot import Plot
from midflight.tui.widgets.table import Table

Check = Callable[[Pilot[None], MidflightApp, FakeFeed], Awaitable[None]]


def drive(folder: Path, check: Check, size: tuple[int, int] = WIDE) -> FakeFeed:
    """Run an app on the fixed data and let `check` press keys."""

    async def run() -> FakeFeed:
        with environment({}), app_on(folder) as (app, feed):
            async with app.run_test(size=size) as pilot:
                await settled(pilot)
                await check(pilot, app, feed)
        return feed

    return asyncio.run(run())


def texts(app: MidflightApp, selector: str) -> list[str]:
    """The lines of a widget of the visible screen."""
    return app.screen.query_one(selector, Lines).texts()


def static(app: MidflightApp, selector: str) -> str:
    """The text of a widget of the visible screen."""
    return str(app.screen.query_one(selector, Static).render())


def test_overview_leads_to_why_a_service_ended(tmp_path: Path) -> None:
    """The worst row comes first; enter shows its exit cause and last output."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        assert app.screen.query_one("#services", Table).chosen == "reward#1"
        await press(pilot, "enter")
        screen = app.screen
        assert isinstance(screen, Services)
        assert (screen.chosen, screen.tab) == ("reward", "exit")
        assert static(app, "#cause").startswith("backoff: reward_fn failed to load")
        assert "  ModuleNotFoundError: exakt" in texts(app, "#log")

    drive(tmp_path, check)


def test_a_filter_holds_for_services_and_decisions(tmp_path: Path) -> None:
    """`/`, and nothing with escape."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        everything = len(texts(app, "#told"))
        await press(pilot, "slash", *typed("rollout"), "enter")
        table = app.screen.query_one("#services", Table)
        assert (table.row_count, len(texts(app, "#told"))) == (2, 2)
        await press(pilot, "escape")
        assert (table.row_count, len(texts(app, "#told"))) == (8, everything)

    drive(tmp_path, check)


def test_logs_filter_find_level_and_detail(tmp_path: Path) -> None:
    """All services, one of them, from a level on, one record as JSON."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "5")
        assert [line.split()[1] for line in texts(app, "#log")] == ["learner", "rollout-0", "reward", "learner"]
        await press(pilot, "backslash", *typed("warn"), "enter")
        assert [line.split()[2] for line in texts(app, "#log")] == ["error", "warning"]
        await press(pilot, "slash", *typed("grad"), "enter", "tab", "enter")
        assert isinstance(app.screen, Page)
        assert any('"norm": 12.5' in line.plain for line in app.screen.lines)
        await press(pilot, "escape", "escape", "backslash", "enter", "shift+tab", "down")
        assert len(texts(app, "#log")) == 1
        await press(pilot, "right_square_bracket", "right_square_bracket", "right_square_bracket")
        assert cast(Services, app.screen).tab == "queues"
        assert "held" in " ".join(texts(app, "#log"))

    drive(tmp_path, check)


def test_configuration_with_its_origin(tmp_path: Path) -> None:
    """File and line, or the command line."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        screen = cast(Services, app.screen)
        await press(pilot, "5")
        screen = cast(Services, app.screen)
        screen.choose("learner")
        await settled(pilot)
        screen.tab = "config"
        screen.stale()
        steps = next(line for line in texts(app, "#log") if line.startswith("steps"))
        assert steps.split() == ["steps", "400", "command", "line"]

    drive(tmp_path, check)


def test_new_log_lines_are_followed(tmp_path: Path) -> None:
    """While the cursor is at the end; not when it was moved away; again with `f`."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "5", "tab")
        screen, log = cast(Services, app.screen), app.screen.query_one("#log", Lines)
        assert log.cursor == 3

        async def more() -> None:
            with (tmp_path / "logs" / "kl.jsonl").open("a") as file:
                file.write('{"timestamp": "2027", "event": "more"}\n')
            screen.read()
            await settled(pilot)

        await more()
        assert log.cursor == 4
        await press(pilot, "home")
        await more()
        assert log.cursor == 0
        await press(pilot, "f")
        assert log.cursor == 5

    drive(tmp_path, check)


def test_plots_page_filter_scale_and_marks(tmp_path: Path) -> None:
    """Every key of the metrics."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "2")
        screen = cast(Metrics, app.screen)

        def shown() -> list[str]:
            return [plot.plan.title for plot in screen.query(Plot) if plot.display and plot.plan]

        first = shown()
        assert first[:2] == ["reward_mean", "eval/reward"]
        assert len(first) == 6
        await press(pilot, "n")
        assert not set(shown()) & set(first)
        await press(pilot, "N", "right", "g", "s", "x")
        plans = [plot.plan for plot in screen.query(Plot) if plot.display and plot.plan]
        assert [plan.log for plan in plans[:3]] == [True, True, True]
        assert {plan.x_name for plan in plans} == {"wall"}
        assert plans[1].focused
        await press(pilot, "m")
        assert shown() == ["eval/reward"]
        await press(pilot, "escape", "plus")
        assert len(shown()) == 9
        await press(pilot, "slash", *typed("knob/*"), "enter", "c")
        plan = next(plot.plan for plot in screen.query(Plot) if plot.plan and plot.plan.title == "knob/kl.coef")
        assert [curve.name for curve in plan.curves] == ["", "kl", "bang"]
        hand = len(plan.marks)
        await press(pilot, "v")
        plan = next(plot.plan for plot in screen.query(Plot) if plot.plan and plot.plan.title == "knob/kl.coef")
        assert len(plan.marks) > hand
        await press(pilot, "v", "right_square_bracket", "right_square_bracket", "enter")
        assert isinstance(app.screen, Overview)
        told = app.screen.query_one("#told", Lines)
        assert "optim.lr 0.0005 -> 0.0003" in told.line(told.cursor).plain

    drive(tmp_path, check)


def test_samples_walk_fold_colour_and_compare(tmp_path: Path) -> None:
    """Every key of the samples."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "3")
        screen = cast(Samples, app.screen)

        def chosen() -> int:
            assert screen.chosen is not None
            return screen.chosen[1].id

        assert (screen.loaded is not None and screen.loaded.step, chosen()) == (120, 700)
        await press(pilot, "n", "n", "p")
        assert (chosen(), screen.following) == (701, False)
        await press(pilot, "P")
        assert screen.loaded is not None
        assert screen.loaded.step == 100
        await press(pilot, "N", "t")
        assert [sample.reward for _, sample in screen.rows] == sorted((s.reward for _, s in screen.rows), reverse=True)
        await press(pilot, "t", "t", "t", "t", "G")
        assert any(f"{chosen()}:" in line for line in texts(app, "#conversation"))
        await press(pilot, "a")
        assert static(app, "#token-facts").startswith("token 1/")
        assert texts(app, "#conversation")[0].startswith("gap")
        await press(pilot, "A", "right")
        assert texts(app, "#conversation")[0].startswith("advantage")
        assert static(app, "#token-facts").startswith("token 2/")
        await press(pilot, "escape")
        screen.choose("710")
        await settled(pilot)
        assert texts(app, "#conversation")[0].startswith("▸ system")
        await press(pilot, "tab", "home", "enter")
        assert texts(app, "#conversation")[1].strip().startswith("You reverse words")
        await press(pilot, "slash", *typed("world"), "enter")
        assert len(screen.rows) == 4

    drive(tmp_path, check)


def test_new_samples_are_followed_until_someone_reads(tmp_path: Path) -> None:
    """`f` follows again; a damaged file is named."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "3")
        screen = cast(Samples, app.screen)
        feed.sample_steps = [100, 120, 140]
        screen.look()
        await settled(pilot)
        assert screen.loaded is not None
        assert screen.loaded.step == 140
        await press(pilot, "n")
        feed.sample_steps = [140, 160]
        screen.look()
        await settled(pilot)
        assert screen.loaded.step == 140
        await press(pilot, "f")
        assert screen.loaded.step == 160
        screen.load(7)
        await settled(pilot)
        assert screen.loaded.step == 140
        assert "step 7 is no longer kept; the oldest is 140" in static(app, "#samples-line")
        assert not screen.following

    drive(tmp_path, check)


def test_a_samples_life(tmp_path: Path) -> None:
    """`#`, an id; one that was never issued; escape closes it."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "6", "number_sign")
        assert app.screen.query_one("#prompt-input", Input).value == "sample "
        await press(pilot, *typed("700"), "enter")
        screen = cast(Ledger, app.screen)
        assert screen.sample == 700
        assert [line.split()[1] for line in texts(app, "#life")][-1] == "trained"
        await press(pilot, "colon", *typed("sample 9"), "enter")
        assert texts(app, "#life") == ["sample 9 was never issued"]
        await press(pilot, "escape")
        assert not texts(app, "#life")

    asked = drive(tmp_path, check).asked
    assert asked == [("data", LedgerGet(sample=700)), ("data", LedgerGet(sample=9))]


def test_a_ledger_that_does_not_balance_says_so(tmp_path: Path) -> None:
    """In red, with the problem, and as an alarm."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        batch = feed.full()
        assert batch.ledger is not None
        batch.facts, batch.ledger = [], batch.ledger.model_copy(update={"problems": ["train: 5 issued but 4"]})
        feed.pending.append(batch)
        app.flush()
        await press(pilot, "6")
        assert "DOES NOT BALANCE" in static(app, "#balance")
        assert "ledger: train: 5 issued but 4" in app.model.alarms()

    drive(tmp_path, check)


@pytest.mark.parametrize("digit", "1234567")
def test_export_writes_a_picture_and_the_numbers(digit: str, tmp_path: Path) -> None:
    """Beside each other, named after the run, the screen and the event."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, digit, "o")

    drive(tmp_path, check)
    files = sorted(path.name for path in tmp_path.glob("midflight-demo-1a2b3c4d-*"))
    assert len(files) == 2
    assert any(name.endswith(".svg") for name in files)
    assert all((tmp_path / name).stat().st_size > 20 for name in files)


def test_copy_takes_the_line_under_the_cursor(tmp_path: Path) -> None:
    """`y`."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "3", "y")
        assert app.clipboard == "olleh"
        await press(pilot, "1", "tab", "end", "y")
        assert "checkpoint of step 120" in app.clipboard

    drive(tmp_path, check)


def test_narrow_terminals_have_their_own_layout(tmp_path: Path) -> None:
    """Below a hundred columns, and back when it grows."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        wide, narrow = (app.screen.query_one(one, Table) for one in ("#services", "#services-narrow"))
        assert (wide.display, narrow.display) == (False, True)
        assert narrow.row_count == 8
        await press(pilot, "enter")
        assert app.current_mode == "services"
        await press(pilot, "3")
        assert app.screen.query_one("#sample-table-narrow", Table).row_count == 8
        await press(pilot, "1")
        await pilot.resize_terminal(*WIDE)
        await settled(pilot)
        assert (wide.display, wide.row_count) == (True, 8)

    drive(tmp_path, check, NARROW)


def test_the_link_that_dies_is_seen(tmp_path: Path) -> None:
    """Nothing new comes, and yet the header and the alarms change."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        feed.silent_s = 7.0
        for _ in range(6):
            app.flush()
        await settled(pilot)
        assert static(app, "#header").endswith("7.0s")
        assert app.model.alarms()[0] == "the kernel is silent for 7 s"
        assert "silent" in static(app, "#alarms")

    drive(tmp_path, check)
