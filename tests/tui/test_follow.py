"""The decisions on the overview follow the newest one, cease to when a mark's is looked at, and go on again."""

import asyncio
from pathlib import Path

import pytest
from support.tui_feed import app_on
from support.tui_scenes import WIDE, environment, press, settled
from textual.widgets import Static

from midflight.tui.actions import service_do
from midflight.tui.facts import Batch, Fact
from midflight.tui.widgets.lines import Lines


@pytest.mark.parametrize("keys", [("f",), ("escape",), ("2", "1")])
def test_it_follows_again(keys: tuple[str, ...], tmp_path: Path) -> None:
    """With `f`, `esc`, or after another screen; meanwhile it says that it does not."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                lines, heading = app.screen.query_one("#told", Lines), app.screen.query_one("#told-heading", Static)
                assert str(heading.render()) == "decisions"
                app.go_to_told(app.model.marks[3].seq)
                await settled(pilot)
                assert not lines.follow
                assert "not following" in str(heading.render())
                await press(pilot, "question_mark", "escape")
                assert not lines.follow
                await press(pilot, *keys)
                assert lines.follow
                assert str(heading.render()) == "decisions"
                assert app.current_mode == "overview"
                feed.pending.append(Batch([Fact(9_999, 1, "learner#1", "note", None, {"text": "newest"})]))
                app.flush()
                await settled(pilot)
                assert "newest" in lines.line(lines.cursor).plain

    asyncio.run(check())


def test_a_toast_tells_the_outcome_and_goes_soon(tmp_path: Path) -> None:
    """The reason of what was done is in the list; why it was not is said."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                app.carry_out(service_do("pause", "reward"), "a long reason of the person")
                await settled(pilot)
                feed.refuse = "it is leaving"
                app.carry_out(service_do("pause", "reward"), "again")
                await settled(pilot)
                toasts = list(app._notifications)
                assert [toast.message for toast in toasts] == [
                    "pause reward: done", "pause reward: refused - it is leaving",
                ]  # fmt: skip
                assert all(toast.timeout <= 2.5 for toast in toasts)

    asyncio.run(check())
