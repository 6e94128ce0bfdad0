"""Engine and learner agree about the same weights, every step says how well, and the run says when they do not."""

from pathlib import Path

import pytest
from support.e2e_run import Up, events, is_step, records, tiny


def test_every_step_reports_the_gap(finished: Up) -> None:
    """Where a batch has tokens of the current version, and within what fp32 allows."""
    steps = [record["values"] for record in records(finished.path) if is_step(record)]
    found = [step for step in steps if "logprob_gap/mean" in step]
    assert found
    for step in found:
        assert 0 <= step["logprob_gap/mean"] <= step["logprob_gap/max"] < 1e-3
        assert step["logprob_gap/k3"] == pytest.approx(0, abs=1e-6)


def test_a_gap_beyond_the_alarm_is_said_once(tmp_path: Path) -> None:
    """An alarm far below what arithmetic allows, so that every step is beyond it."""
    topology = tiny(tmp_path, steps=4)
    with Up(tmp_path, topology, "services.learner.logprob_gap_alarm=1.0e-12") as up:
        assert up.wait() == 0, up.output
    notes = [e["values"] for e in events(up.path, "note") if "logprob_gap_alarm" in e["values"]["text"]]
    assert [note["level"] for note in notes] == ["warning"]
