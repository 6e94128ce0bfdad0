"""Rows that an offline trainer cannot use are counted, and told in a few lines however many they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.learner_service import learner, offline

from midflight.messages.base import Scalar

Told = list[tuple[str, dict[str, Scalar]]]


def every_second_bad(file: Path, count: int) -> str:
    """A file of rows."""
    good = json.dumps({"prompt": "a", "response": "b"})
    file.write_text("\n".join(good if n % 2 else json.dumps({"prompt": "a"}) for n in range(count)))
    return str(file)


def told_by(service: Any, monkeypatch: pytest.MonkeyPatch, turns: int) -> Told:
    """(topic, body) of what a service tells while it works."""
    events: Told = []
    monkeypatch.setattr(service, "event", lambda topic, body, step=None: events.append((topic, dict(body))))
    for _ in range(turns):
        service.work(0.0)
        if service.commits.writing:
            service.trainer.saver.settle(60.0)
            service.commits.tend(0.0)
    return events


def notes(events: Told) -> list[str]:
    """What is said to people of rows."""
    texts = [str(body["text"]) for topic, body in events if topic == "note"]
    return [text for text in texts if "refused" in text]


def test_refused_rows_are_counted_and_few_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one by one, then how many: sometimes, and at the end of the first epoch, of all; and as a metric."""
    service = offline(tmp_path, data=every_second_bad(tmp_path / "rows.jsonl", 240), batch_size=8, steps=18)
    events = told_by(service, monkeypatch, 18)
    said = notes(events)
    assert len(said) == 8
    assert all(": prompt: needs `response`" in text for text in said[:5])
    assert said[5].endswith("rows refused so far")
    assert said[6].endswith("rows refused so far")
    assert said[7] == "120 of 240 rows refused"
    counts = [body["rows/refused"] for topic, body in events if topic == "metrics"]
    assert len(counts) == 18
    assert counts == sorted(counts)  # type: ignore[type-var]
    assert counts[-1] == 120


def test_a_run_that_ends_in_an_epoch_tells_what_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rows it has drawn."""
    service = offline(tmp_path, data=every_second_bad(tmp_path / "rows.jsonl", 200), batch_size=4, steps=1)
    said = notes(told_by(service, monkeypatch, 2))
    examples = service.trainer.examples
    assert examples is not None
    assert said[-1] == f"{examples.refused} of {examples.drawn} rows refused so far"


def test_held_out_rows_that_are_refused_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the evaluation, and in a few lines."""
    events: list[str] = []
    monkeypatch.setattr(
        "midflight.services.learner.offline.service.Offline._note", lambda _, level, text: events.append(text)
    )
    service = offline(tmp_path, evaluation={"data": every_second_bad(tmp_path / "rows.jsonl", 30)})
    assert [text.startswith("held-out row refused: ") for text in events] == [True] * 5 + [False]
    assert events[-1] == "15 of 30 held-out rows refused"
    (topic, body), *_ = told_by(service, monkeypatch, 1)
    assert (topic, body["n"], body["refused"]) == ("evaluation", 15, 15)


def test_what_was_refused_is_known_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are refused in the first epoch, of which the next process may see no more than the end."""
    chosen: dict[str, Any] = {"data": every_second_bad(tmp_path / "rows.jsonl", 40), "batch_size": 8, "steps": 9}
    first = offline(tmp_path, **chosen, checkpoint_every=1)
    told_by(first, monkeypatch, 3)
    again = offline(tmp_path, **chosen, checkpoint_every=1)
    assert again.trainer.step >= 1
    events = told_by(again, monkeypatch, 6)
    assert [body["rows/refused"] for topic, body in events if topic == "metrics"][-1] == 20
    assert notes(events)[-1] == "20 of 40 rows refused"


def test_a_warm_start_counts_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines, and the number in its metrics."""
    sft = {"data": every_second_bad(tmp_path / "rows.jsonl", 40), "batch_size": 24, "steps": 1}
    events = told_by(learner(tmp_path, sft=sft), monkeypatch, 1)
    assert notes(events)[-1] == "20 of 40 rows refused"
    assert [body["rows/refused"] for topic, body in events if topic == "sft"] == [20]
