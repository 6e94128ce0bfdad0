"""Samples: of steps that come and go, at a moment of a finished run, and a whole group at a glance."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from support import tui_data as data
from support.tui_driver import drive
from support.tui_feed import FakeFeed
from support.tui_scenes import press, settled
from textual.pilot import Pilot
from textual.widgets import Static

from midflight.kernel.sample_files import Group, SampleFileError, StepSamples
from midflight.tui.app import MidflightApp
from midflight.tui.sample_rows import side_by_side
from midflight.tui.screens.samples import Samples
from midflight.tui.widgets.lines import Lines


def line(app: MidflightApp) -> str:
    """The line on top."""
    return str(app.screen.query_one("#samples-line", Static).render())


def step_of(app: MidflightApp) -> int:
    """Which step is shown; -1 for none."""
    loaded = cast(Samples, app.screen).loaded
    return loaded.step if loaded else -1


def test_before_the_oldest_kept_step_it_stays_there(tmp_path: Path) -> None:
    """Also when the step that is shown has aged out itself, and when the next one does while it is asked for."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "3", "P", "P")
        assert (step_of(app), line(app).endswith("nothing before step 100 is kept")) == (100, True)
        feed.sample_steps = [130, 140]
        cast(Samples, app.screen).look()
        await settled(pilot)
        await press(pilot, "P")
        assert (step_of(app), line(app).endswith("nothing before step 130 is kept")) == (130, True)
        feed.sample_steps = [150, 160]
        await press(pilot, "N")
        assert (step_of(app), line(app).endswith("step 140 is no longer kept; the oldest is 150")) == (150, True)

    drive(tmp_path, check)


def test_a_damaged_file_is_told_without_its_path(tmp_path: Path) -> None:
    """The step, and what is wrong."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        def damaged(step: int) -> StepSamples:
            raise SampleFileError(f"/runs/demo/samples/{step}.json: damaged, or not a sample file: no groups")

        await press(pilot, "3")
        feed.samples = damaged  # type: ignore[method-assign]
        await press(pilot, "P")
        assert line(app) == " samples of step 100: damaged, or not a sample file: no groups"

    drive(tmp_path, check)


def test_at_an_earlier_moment_the_newest_step_up_to_it(tmp_path: Path) -> None:
    """Of a finished run; before the first there are none; and forward again."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        await press(pilot, "3")
        assert step_of(app) == 120
        for step, shown in ((110, 100), (50, -1), (119, 100), (120, 120)):
            feed.seek(next(at for at, fact in enumerate(feed.facts, 1) if fact.step == step))
            app.flush()
            await settled(pilot)
            assert (app.model.step, step_of(app)) == (step, shown)
            assert ("no samples up to this moment" in line(app)) is (shown == -1)

    drive(tmp_path, check, writable=False)


def eight(long: bool = False) -> Group:
    """A group of eight."""
    group = data.samples(5).groups[0]
    text = "word " * 200 if long else "olleh"
    samples = [replace(one, id=700 + at, text=text) for at, one in enumerate(group.samples * 2)]
    return Group(88, "Reverse: hello", [], samples)


@pytest.mark.parametrize("long", [False, True])
def test_eight_of_eight_are_seen_at_once(long: bool, tmp_path: Path) -> None:
    """On 160 x 45, however long they are: under each other, cut where there is no room."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        group = eight(long)
        feed.samples = lambda step: StepSamples(step, step, [group])  # type: ignore[method-assign]
        await press(pilot, "3", "G")
        lines = app.screen.query_one("#conversation", Lines)
        assert len(lines) <= lines.content_size.height
        text = "\n".join(lines.texts())
        assert all(f"{700 + at}: " in text for at in range(8))
        assert "8 samples" in lines.texts()[0]
        assert ("lines)" in text) is long

    drive(tmp_path, check, size=(160, 45))


def test_of_a_group_too_large_it_says_how_many() -> None:
    """And the chosen one is among them."""
    group = eight()
    for chosen in range(700, 708):
        lines = [line.plain for line in side_by_side(group, chosen, 60, 12)]
        assert ", 2 of 8 samples," in lines[0]
        assert any(f"{chosen}: " in text for text in lines)


def test_a_reward_is_not_told_twice(tmp_path: Path) -> None:
    """When the only named one is called reward."""

    async def check(pilot: Pilot[None], app: MidflightApp, feed: FakeFeed) -> None:
        loaded = data.samples(120)
        for group in loaded.groups:
            for sample in group.samples:
                sample.rewards.clear()
                sample.rewards["reward"] = sample.reward
        feed.samples = lambda step: loaded  # type: ignore[method-assign]
        await press(pilot, "3")
        head = str(app.screen.query_one("#sample-head", Static).render())
        assert head.count("reward") == 1

    drive(tmp_path, check)
