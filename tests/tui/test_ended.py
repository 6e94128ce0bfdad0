"""The end of a run: an orderly one leaves nothing half stopped, and one without a word is said to be that."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.text import Text
from support import tui_data as data
from support.tui_feed import app_on
from support.tui_kernel import make_run, toy_kernel
from support.tui_scenes import WIDE, environment, press, settled
from textual.widgets import Static

from midflight.kernel.journal import Journal
from midflight.messages.base import Scalar
from midflight.tui.ended import GONE_ALARM
from midflight.tui.facts import Batch, Feed
from midflight.tui.flow import flow
from midflight.tui.header import View, header
from midflight.tui.main import feed_of
from midflight.tui.model import RunModel
from midflight.tui.screens.overview import Overview
from midflight.tui.service_rows import service_row
from midflight.tui.widgets.table import Table
from midflight.tui.words import ASCII

DEADLINE_S = 30.0
OVER: dict[str, Scalar] = {"state": "over", "code": 0, "why": "midflight down"}


def taken(feed: Feed, model: RunModel, done: Callable[[], bool]) -> None:
    """Fold until it is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        model.fold(feed.take())
        assert time.monotonic() < deadline
        time.sleep(0.01)


def states(model: RunModel) -> dict[str, str]:
    """Every service's state."""
    return {one.name: one.state for one in model.status.services} if model.status else {}


@pytest.mark.parametrize(("orderly", "state"), [(True, "stopped"), (False, "gone")])
def test_a_living_run_ends(orderly: bool, state: str, tmp_path: Path) -> None:
    """Its last words may be in the journal alone; nothing stays as the kernel last said."""
    with toy_kernel(tmp_path / "run") as kernel:
        kernel.emit("metrics", {"loss": 1.0}, 1)
        feed, model = feed_of(kernel.run), RunModel()
        feed.start()
        try:
            taken(feed, model, lambda: model.status is not None and not model.reading)
            kernel.mute = True
            if orderly:
                kernel.emit("run.state", OVER, live=False)
            kernel.run.release()
            taken(feed, model, lambda: model.ended)
        finally:
            feed.stop()
    assert set(states(model).values()) == {state, "backoff"}
    assert (GONE_ALARM in model.alarms()) is not orderly
    assert model.seq == 1 + orderly
    text = header(model, View("overview", "r", ASCII, 100.0)).plain
    assert "- tok/s" in text
    assert "RW" not in text


def journaled(path: Path, tail: Sequence[tuple[str, dict[str, Scalar]]]) -> Feed:
    """A run that is over, with the story and then these events."""
    run = make_run(path)
    told = data.story(steps=20)
    with Journal(run.journal, dict) as journal:
        for fact in told:
            journal.append({"t": "event", "stream": "s", **fact._asdict(), "of": "", "post": None})
        for seq, (topic, body) in enumerate(tail, len(told) + 1):
            journal.append({"t": "event", "stream": "s", "seq": seq, "ns": data.at(20), "source": "kernel",
                            "topic": topic, "step": None, "body": body, "of": "", "post": None})  # fmt: skip
    run.release()
    return feed_of(run)


def test_a_run_is_opened_that_ended_without_a_word(tmp_path: Path) -> None:
    """At its end everything is gone; at a moment before it is as it was then."""
    feed, model = journaled(tmp_path / "run", ()), RunModel()
    feed.start()
    taken(feed, model, lambda: model.ended)
    assert set(states(model).values()) == {"gone"}
    assert GONE_ALARM in model.alarms()
    assert flow(model, data.CONFIG, ASCII, 120)[0].plain == "the run is over"
    feed.seek(feed.length() - 5)
    model = RunModel()
    taken(feed, model, lambda: not model.reading and model.facts > 0)
    feed.stop()
    assert (model.over, model.ended) == (True, False)
    assert set(states(model).values()) == {"running"}
    assert GONE_ALARM not in model.alarms()


def test_a_run_is_opened_that_was_ended(tmp_path: Path) -> None:
    """Nothing stays `stopping`."""
    service: dict[str, Scalar] = {"name": "ledger", "slot": "ledger", "generation": 1, "state": "stopping", "pid": 100}
    feed = journaled(tmp_path / "run", [("service.state", service), ("run.state", OVER)])
    model = RunModel()
    feed.start()
    taken(feed, model, lambda: model.ended)
    feed.stop()
    assert set(states(model).values()) == {"stopped"}
    assert model.alarms() == []
    assert "- tok/s" in header(model, View("overview", "r", ASCII)).plain


def test_what_the_kernel_said_last_ages() -> None:
    """SEEN goes on while nobody answers, once a second, and the screen is told."""
    service = data.status().services[0]
    _, cells = service_row(service, ASCII, {}, None, False, 30.0)
    assert str(cells[7]) == "30s"
    model = RunModel()
    model.fold(Batch(status=data.status(), silent_s=4.2))
    assert not model.fold(Batch(silent_s=4.4))
    assert model.fold(Batch(silent_s=5.1))


def test_it_is_said_on_the_overview_and_nothing_can_be_armed(tmp_path: Path) -> None:
    """A banner, grey rows, RO; `w` does not help."""

    async def check() -> None:
        with environment({}), app_on(tmp_path) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                feed.take = lambda: Batch(over=True, ended=True, silent_s=9.0)  # type: ignore[method-assign]
                app.flush()
                await settled(pilot)
                assert isinstance(app.screen, Overview)
                assert GONE_ALARM in str(app.screen.query_one("#alarms", Static).render())
                row = app.screen.query_one("#services", Table).get_row("learner#1")
                assert [str(cell) for cell in row[:2]] == ["learner#1", "○ gone"]
                assert all(isinstance(cell, Text) and cell.style == "dim" for cell in row)
                await press(pilot, "w")
                assert "RW" not in str(app.screen.query_one("#header", Static).render())

    asyncio.run(check())
