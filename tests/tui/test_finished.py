"""A run that is over: its journal, configuration, ledger and logs, and a slider over its time."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tui_data as data
from support.tui_kernel import make_run
from support.tui_scenes import WIDE, environment, press, settled, typed

from midflight.kernel.journal import Journal
from midflight.messages.control import Refused, StatusGet
from midflight.services.ledger.store import Store
from midflight.tui.app import MidflightApp, Options
from midflight.tui.facts import Batch, Fact
from midflight.tui.finished import FileFeed
from midflight.tui.main import feed_of
from midflight.tui.model import RunModel
from midflight.tui.rebuild import Rebuild

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a run leaves it, with the story in its journal."""
    path = tmp_path_factory.mktemp("finished") / "run"
    held = make_run(path)
    data.write_logs(held.logs)
    spec = data.knobs().knobs[0].declaration.model_dump() | {"applies": "learner"}
    with Journal(held.journal, dict) as journal:
        declared = {"knob": "kl.coef", "spec": spec, "value": 0.001, "version": 0}
        journal.append({"t": "knob", "kind": "knob.declared", "body": declared})
        for fact in data.story():
            journal.append({"t": "event", "stream": "s", **fact._asdict(), "of": "", "post": None})
    Store(held.ledger_db).close()
    held.release()
    return path


def given(feed: FileFeed, model: RunModel, done: Callable[[], bool]) -> None:
    """Take until it is done."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        batch = feed.take()
        if batch.restart:
            model.__init__()  # type: ignore[misc]
        model.fold(batch)
        assert time.monotonic() < deadline


def opened(path: Path) -> tuple[FileFeed, RunModel]:
    """A feed that has read everything."""
    from midflight.kernel.rundir import RunDir

    feed, model = feed_of(RunDir(path)), RunModel()
    assert isinstance(feed, FileFeed)
    feed.start()
    given(feed, model, lambda: feed.length() == len(data.story()) and not model.reading and model.facts > 0)
    return feed, model


def test_the_end_first_then_any_moment(run: Path) -> None:
    """What the kernel would have answered then."""
    feed, model = opened(run)
    assert (model.step, model.over) == (120, True)
    feed.seek(100)
    given(feed, model, lambda: model.facts == 100)
    assert model.step == data.story()[99].step or model.step < 30
    feed.seek(feed.length())
    given(feed, model, lambda: model.step == 120)
    feed.stop()
    assert model.status is not None
    states = {service.name: (service.generation, service.restarts) for service in model.status.services}
    assert states["rollout-1"] == (2, 1)
    assert model.knobs is not None
    coef = next(knob for knob in model.knobs.knobs if knob.declaration.name == "kl.coef")
    assert (coef.declaration.high, coef.author, coef.version) == (100.0, "kl#1", 120)
    assert model.controllers is not None
    assert [(one.name, one.standing) for one in model.controllers.controllers] == [("kl", "active"), ("bang", "shadow")]


def test_it_can_be_looked_at_not_changed(run: Path) -> None:
    """Everything but the ledger is refused."""
    feed, _ = opened(run)
    answer = feed.ask("ctl", StatusGet()).result(DEADLINE_S)
    assert isinstance(answer, Refused)
    feed.stop()


def test_the_ledger_comes_from_its_store(run: Path) -> None:
    """Once, when its screen is shown; without a store nothing breaks."""
    feed, model = opened(run)
    feed.want(True, True)
    given(feed, model, lambda: model.ledger is not None and len(model.hosts) > 0)
    assert model.ledger is not None
    assert model.ledger.problems == []
    feed.stop()


def test_a_run_without_a_journal_is_empty(run: Path, tmp_path: Path) -> None:
    """It opens all the same."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "journal.bin").unlink()
    (tmp_path / "run" / "ledger.sqlite").unlink()
    from midflight.kernel.rundir import RunDir

    feed, model = feed_of(RunDir(tmp_path / "run")), RunModel()
    assert isinstance(feed, FileFeed)
    feed.want(True, True)
    feed.start()
    given(feed, model, lambda: not model.reading and len(model.hosts) > 0)
    assert (model.facts, model.ledger) == (0, None)
    feed.stop()


def test_the_screens_of_a_finished_run(run: Path) -> None:
    """Each opens; the slider goes back and the screens follow; nothing can be armed."""

    async def check() -> None:
        from midflight.kernel.rundir import RunDir

        with environment({}):
            app = MidflightApp(feed_of(RunDir(run)), Options())
            async with app.run_test(size=WIDE) as pilot:
                for _ in range(200):
                    await settled(pilot)
                    if app.model.step == 120:
                        break
                for digit in "1234567":
                    await press(pilot, digit)
                app.action_rewind(-45)
                await press(pilot, "1", "comma", "comma")
                assert 0 < app.model.step < 100
                step = app.model.step
                await press(pilot, "w", "full_stop")
                assert app.armed_s() is None
                assert app.model.step > step
                await press(pilot, "colon", *typed("sample 1"), "enter")
                assert app.current_mode == "ledger"

    asyncio.run(check())


def fact(topic: str, source: str = "kernel", **body: str | int | float | bool | None) -> Fact:
    """One event."""
    return Fact(1, 1, source, topic, None, body)


def test_promotion_and_lock_are_rebuilt() -> None:
    """Who ruled is previous then; a released knob has no owner."""
    rebuild = Rebuild("r", data.CONFIG)
    for one in (
        fact("controller", "kl#1", slot="kl", standing="active", knob="kl.coef", at_step=1),
        fact("controller.attached", slot="kl", name="bang", to="bang#1"),
        fact("controller", "bang#1", slot="kl", standing="shadow", knob="kl.coef", at_step=1),
        fact("controller.promoted", slot="kl", name="bang", to="bang#1"),
        fact("knob.granted", knob="kl.coef", owner="bang#1", epoch=2),
        fact("knob.released", knob="kl.coef", epoch=2),
    ):
        rebuild.fold(one)
    _, knobs, controllers = rebuild.answers()
    standings = {one.name: one.standing for one in controllers.controllers}
    assert standings == {"kl": "previous", "bang": "active"}
    assert controllers.locked == []
    assert knobs.knobs[0].owner is None
    rebuild.fold(fact("controller.rolled_back", slot="kl", name="bang", to="kl#1"))
    back = {one.name: one.standing for one in rebuild.answers()[2].controllers}
    assert back == {"kl": "active", "bang": "shadow"}
    rebuild.fold(fact("controller.detached", slot="kl", name="bang"))
    _, _, after = rebuild.answers()
    assert ([one.name for one in after.controllers], after.locked) == (["kl"], [])


def test_rebuilding_survives_any_body() -> None:
    """Events of another version, or of a service of one's own, are no reason to fail."""
    rebuild = Rebuild("r", {})
    for topic in ("service.state", "knob", "knob.granted", "knob.applied", "controller", "controller.promoted",
                  "controller.attached", "run.state", "metrics", "mine"):  # fmt: skip
        rebuild.fold(fact(topic, "x"))
    model = RunModel()
    status, knobs, controllers = rebuild.answers()
    model.fold(Batch([fact("swap"), fact("service.exit"), fact("note")], status, knobs, controllers))
    assert model.status is status
