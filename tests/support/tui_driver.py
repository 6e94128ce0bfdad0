"""Runs an app on the fixed data for a check that presses keys."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from textual.pilot import Pilot

from midflight.tui.app import MidflightApp
from midflight.tui.facts import Fact

from .tui_feed import FakeFeed, app_on
from .tui_scenes import WIDE, environment, settled

Check = Callable[[Pilot[None], MidflightApp, FakeFeed], Awaitable[None]]


def drive(
    folder: Path,
    check: Check,
    *,
    size: tuple[int, int] = WIDE,
    write: bool = True,
    writable: bool = True,
    facts: Sequence[Fact] | None = None,
) -> FakeFeed:
    """Let `check` press keys; -> the feed, which knows what it was asked."""

    async def run() -> FakeFeed:
        with environment({}), app_on(folder, write=write, writable=writable, facts=facts) as (app, feed):
            async with app.run_test(size=size) as pilot:
                await settled(pilot)
                await check(pilot, app, feed)
        return feed

    return asyncio.run(run())
