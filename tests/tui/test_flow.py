"""The way of a sample: who counts, and how it fits."""

import pytest
from support import tui_data as data

from midflight.messages.control import ServiceStatus
from midflight.tui.facts import Batch
from midflight.tui.flow import flow, stages
from midflight.tui.model import RunModel
from midflight.tui.service_rows import service_row
from midflight.tui.words import ASCII, UNICODE


def model_with(*more: ServiceStatus, **changed: dict[str, object]) -> RunModel:
    """The story with more services, and some of its own changed."""
    status = data.status()
    services = [one.model_copy(update=changed.get(one.name.replace("-", "_"), {})) for one in status.services]
    model = RunModel()
    model.fold(Batch(data.story(), status.model_copy(update={"services": [*services, *more]}), data.knobs()))
    return model


@pytest.mark.parametrize("state", ["stopped", "failed", "gone"])
def test_replicas_that_are_gone_do_not_count(state: str) -> None:
    """Neither as boxes, nor for tickets, nor as the slowest."""
    model = model_with(rollout_1={"state": state, "stats": {"version": 3}})
    box = next(stage for stage in stages(model, data.CONFIG) if stage.kind == "rollout")
    assert ([one.name for one in box.services], box.capacity) == (["rollout-0"], 128)
    text = "\n".join(line.plain for line in flow(model, data.CONFIG, ASCII, 160))
    assert "slowest rollout" not in text
    assert "rolloutx2" not in text


def test_the_slowest_of_those_that_live_is_told() -> None:
    """As before."""
    model = model_with(rollout_1={"stats": {"version": 118}})
    assert "the slowest rollout 2 behind" in "\n".join(x.plain for x in flow(model, data.CONFIG, ASCII, 160))


def test_a_successor_that_waits_does_not_count_and_a_kind_that_failed_is_seen() -> None:
    """Twice the tickets would be wrong; a box that vanished would hide the trouble."""
    twin = data.status().services[1].model_copy(update={"generation": 2, "role": "standby"})
    box = next(stage for stage in stages(model_with(twin), data.CONFIG) if stage.kind == "rollout")
    assert box.capacity == 256
    found = [stage.kind for stage in stages(model_with(reward={"state": "failed"}), data.CONFIG)]
    assert found == ["rollout", "reward", "learner"]


@pytest.mark.parametrize("glyphs", [ASCII, UNICODE])
@pytest.mark.parametrize("width", [40, 80, 99, 100, 110, 120, 132, 160])
def test_no_line_is_wider_than_the_terminal(width: int, glyphs: object) -> None:
    """Bars are shortened; from a hundred columns on the way stays one line with all its words."""
    assert glyphs in (ASCII, UNICODE)
    lines = flow(model_with(), data.CONFIG, ASCII if glyphs == ASCII else UNICODE, width)
    assert all(line.cell_len <= width - 2 for line in lines)
    if width >= 100:
        assert all(word in lines[0].plain for word in ("tickets 96/256", "samples 44/256", "scored 230/256", "learner"))


def test_a_cell_that_was_cut_says_so() -> None:
    """Its last character."""
    service = data.status().services[0].model_copy(update={"cause": "x" * 100, "phase": "y" * 40})
    _, cells = service_row(service, UNICODE, {}, None, False)
    assert str(cells[-1]) == "x" * 39 + "…"
    assert str(cells[3]) == "y" * 35 + "…"
    _, narrow = service_row(service, ASCII, {}, None, True)
    assert str(narrow[2]) == "y" * 26 + ".."
