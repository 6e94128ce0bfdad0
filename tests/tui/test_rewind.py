"""Going back in a long finished run: from the nearest copy, to the last place that was asked for."""

import asyncio
from pathlib import Path

import pytest
from support import tui_data as data
from support.tui_feed import FakeFeed, app_on
from support.tui_kernel import make_run
from support.tui_scenes import WIDE, environment, settled

from midflight.kernel.journal import Journal
from midflight.tui import finished
from midflight.tui.app import MidflightApp, Options
from midflight.tui.checkpoints import Checkpoints
from midflight.tui.facts import Batch
from midflight.tui.finished import FileFeed
from midflight.tui.main import feed_of
from midflight.tui.model import RunModel


def test_places_are_kept_thinned_and_found() -> None:
    """Two that are put alike keep alike; spans end wherever a copy may be due."""
    kept: Checkpoints[str] = Checkpoints(every=10, kept=4)
    for place in range(10, 60, 10):
        assert kept.due(place)
        kept.put(place, str(place))
    assert [kept.at(place) for place in range(10, 60, 10)] == [None, "20", None, "40", None]
    assert (kept.before(39), kept.before(19), kept.before(99)) == (20, 0, 40)
    assert not kept.due(50)
    assert list(kept.spans(15, 30)) == [(0, 5), (5, 25), (25, 30)]


def test_a_copy_of_a_model_is_its_own() -> None:
    """What is folded into one is not in the other, and it goes on as the first would have."""
    facts = data.story()
    whole, first = RunModel(), RunModel()
    whole.fold(Batch(facts))
    first.fold(Batch(facts[:200]))
    before = (first.step, len(first.told.lines), len(first.series["kl"]), len(first.decisions["kl"]), len(first.marks))
    twin = first.copy()
    twin.fold(Batch(facts[200:]))
    after = (first.step, len(first.told.lines), len(first.series["kl"]), len(first.decisions["kl"]), len(first.marks))
    assert after == before
    assert list(twin.told.lines) == list(whole.told.lines)
    assert list(twin.marks) == list(whole.marks)
    assert twin.decisions == whole.decisions
    assert {n: s.points(99) for n, s in twin.series.items()} == {n: s.points(99) for n, s in whole.series.items()}
    assert twin.timeline.samples == whole.timeline.samples
    assert (twin.rates, twin.exits, twin.last) == (whole.rates, whole.exits, whole.last)


def journaled(path: Path) -> FileFeed:
    """The story as a run that is over."""
    run = make_run(path)
    with Journal(run.journal, dict) as journal:
        for fact in data.story():
            journal.append({"t": "event", "stream": "s", **fact._asdict(), "of": "", "post": None})
    run.release()
    feed = feed_of(run)
    assert isinstance(feed, FileFeed)
    return feed


def test_going_back_begins_at_the_nearest_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few facts are folded again, and the picture is the one that folding all would give."""
    monkeypatch.setattr(finished, "Checkpoints", lambda: Checkpoints(every=50))

    async def check() -> None:
        feed = journaled(tmp_path / "run")
        app = MidflightApp(feed, Options())
        app._kept = Checkpoints(every=50)
        with environment({}):
            async with app.run_test(size=WIDE) as pilot:
                while app.model.reading or not app.model.ended:
                    await settled(pilot)
                    app.flush()
                folded: list[int] = []
                fold = app._fold

                def noted(batch: Batch) -> bool:
                    folded.append(len(batch.facts))
                    return fold(batch)

                app._fold = noted  # type: ignore[method-assign]
                for target in (333, 120, 250, 40):
                    feed.seek(target)
                    folded.clear()
                    app.flush()
                    alone = RunModel()
                    alone.fold(Batch(data.story()[:target]))
                    assert (app.model.facts, app.model.step) == (target, alone.step)
                    assert list(app.model.told.lines) == list(alone.told.lines)
                    assert {n: s.points(99) for n, s in app.model.series.items()} == {
                        n: s.points(99) for n, s in alone.series.items()
                    }
                    assert sum(folded) <= (50 if target != 250 else 130)
                    assert app.model.status is not None
                    assert app.model.status.seq == target

    asyncio.run(check())


def test_of_many_presses_the_last_target_alone_is_worked_out(tmp_path: Path) -> None:
    """Held down, the key does not queue up work; all presses count."""

    async def check() -> None:
        with environment({}), app_on(tmp_path, writable=False) as (app, feed):
            async with app.run_test(size=WIDE) as pilot:
                await settled(pilot)
                sought = watched(feed)
                length = feed.length()
                for _ in range(20):
                    app.action_rewind(-1)
                await settled(pilot)
                assert sought == [length - 20 * (length // 100)]
                assert app.model.facts == sought[0]
                app.action_rewind(100)
                await settled(pilot)
                assert app.model.facts == length

    asyncio.run(check())


def watched(feed: FakeFeed) -> list[int]:
    """Where the slider is sent from now on."""
    sought: list[int] = []
    seek = feed.seek

    def noted(position: int) -> None:
        sought.append(position)
        seek(position)

    feed.seek = noted  # type: ignore[method-assign]
    return sought
