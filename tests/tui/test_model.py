"""A run folded into what the screens show."""

import pytest
from support import tui_data as data

from midflight.messages.control import Status
from midflight.tui.facts import Batch, Fact
from midflight.tui.model import CONTROLLERS, SERIES, RunModel


def folded(*facts: Fact) -> RunModel:
    """A model of these facts alone."""
    model = RunModel()
    model.fold(Batch(list(facts)))
    return model


def fact(topic: str, body: dict[str, str | int | float | bool | None], source: str = "kernel", step: int | None = None,
         seq: int = 1) -> Fact:  # fmt: skip
    """One event."""
    return Fact(seq, 1000, source, topic, step, body)


@pytest.fixture(scope="module")
def model() -> RunModel:
    """The story, with the kernel's answers."""
    model = RunModel()
    model.fold(Batch(data.story(), data.status(), data.knobs(), data.controllers(), data.ledger(), data.host()))
    return model


def test_the_newest_numbers(model: RunModel) -> None:
    """Step, version, rates of every rollout, reward and how it moved."""
    assert (model.step, model.version) == (120, 120)
    assert model.rates == {"rollout-0": 4220.0, "rollout-1": 4210.0}
    reward, change = model.reward() or (0.0, 0.0)
    assert reward == pytest.approx(0.8790, abs=1e-3)
    assert abs(change) < 0.05


def test_marks_tell_what_was_changed_by_whom(model: RunModel) -> None:
    """By hand, by a rule, a death, a swap; a controller's own moves only where they are more than one per cent."""
    kinds = [(mark.kind, mark.step) for mark in model.marks if mark.kind != "controller"]
    assert kinds == [("rule", 40), ("hand", 60), ("restart", 80), ("swap", 100)]
    assert 0 < sum(mark.kind == "controller" for mark in model.marks) < 110


def test_decisions_of_shadow_and_active_are_kept_apart(model: RunModel) -> None:
    """With what they measured and why."""
    last = model.decisions["bang"][-1]
    assert (last.standing, last.at_step, last.values) == ("shadow", 120, {"kl.coef": 0.002})
    assert dict(last.inputs) == {"kl": pytest.approx(0.1578, abs=1e-3)}
    assert len(model.decisions["kl"]) == 120


def test_alarms_name_the_service_and_its_cause(model: RunModel) -> None:
    """One service is in backoff."""
    assert model.alarms() == ["reward backoff: reward_fn failed to load: no module named 'exakt'"]


def test_a_silent_kernel_is_an_alarm_but_not_of_a_run_that_is_over() -> None:
    """After three seconds."""
    model = RunModel()
    model.fold(Batch(silent_s=5.0))
    assert model.alarms() == ["the kernel is silent for 5 s"]
    model.fold(Batch(silent_s=5.0, over=True))
    assert model.alarms() == []


def test_a_batch_without_news_changes_nothing() -> None:
    """So that nothing is drawn."""
    model = RunModel()
    assert not model.fold(Batch(silent_s=0.1))
    assert model.fold(Batch(status=data.status()))
    assert model.changes == 1


def test_bounded_in_names() -> None:
    """A run that invents metrics and controllers without end does not fill the memory."""
    facts = [fact("metrics", {f"m{n}": 1.0}, "learner#1", n) for n in range(2 * SERIES)]
    facts += [fact("controller", {"value/k.k": 1.0, "at_step": 1}, f"c{n}#1") for n in range(2 * CONTROLLERS)]
    model = folded(*facts)
    assert len(model.series) <= SERIES
    assert len(model.decisions) == CONTROLLERS


@pytest.mark.parametrize("value", [True, "text", None])
def test_what_is_no_number_is_no_metric(value: bool | str | None) -> None:
    """A flag or a word in a body is kept, not plotted."""
    model = folded(fact("metrics", {"odd": value, "version": 3}, "learner#1", 1))
    assert "odd" not in model.series
    assert model.last["metrics"]["odd"] == value


def test_warm_up_has_its_own_axis() -> None:
    """Its steps are not training steps."""
    model = folded(fact("sft", {"loss": 2.0}, "learner#1", 20), fact("sft", {"loss": 1.0}, "learner#1", 40))
    assert model.step == 0
    assert [p.x for p in model.series["sft/loss"].points(9)] == [20, 40]


def test_repeated_knobs_are_one_line_with_a_count() -> None:
    """A controller that moves its knob each step does not push everything else away; a person's changes all stay."""
    model = RunModel()
    for seq in range(1, 51):
        model.fold(Batch([fact("knob", {"knob": "kl.coef", "value": seq / 100, "author": "kl#1"}, seq=seq)]))
    by_hand: dict[str, str | int | float | bool | None] = {
        "knob": "optim.lr",
        "value": 0.1,
        "author": "operator",
        "reason": "why",
    }
    model.fold(Batch([fact("knob", by_hand, seq=51), fact("knob", by_hand, seq=52)]))
    assert [(line.text, line.count) for line in model.told.lines] == [
        ("kl.coef = 0.5", 50),
        ("optim.lr = 0.1", 1),
        ("optim.lr = 0.1", 1),
    ]


def test_control_characters_of_others_are_shown_not_obeyed() -> None:
    """In a note, a cause or a reason."""
    model = folded(fact("note", {"level": "error", "text": "red \x1b[31m"}, "learner#1"))
    assert [line.text for line in model.told.lines] == ["red \\x1b[31m"]


def test_rates_of_dead_rollouts_do_not_count() -> None:
    """The header sums those the kernel knows."""
    from midflight.tui.header import View, header
    from midflight.tui.words import UNICODE

    model = RunModel()
    rates = [fact("throughput", {"tokens_per_s": 1000.0}, f"rollout-{n}#1") for n in range(3)]
    model.fold(Batch(rates))
    assert "3.0k tok/s" in header(model, View("overview", "r", UNICODE)).plain
    services = [one for one in data.status().services if one.name != "rollout-1"]
    model.fold(Batch(status=Status(**{**data.status().model_dump(), "services": [s.model_dump() for s in services]})))
    assert "1.0k tok/s" in header(model, View("overview", "r", UNICODE)).plain
