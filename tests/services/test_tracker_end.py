"""What the tracker writes of a run's end, in metrics.jsonl and so to every backend."""

from pathlib import Path
from typing import Any

import pytest

from midflight.kernel.settings import Settings
from midflight.messages.events import Event
from midflight.services.tracker import read_from
from midflight.services.tracker.config import TrackerConfig
from midflight.services.tracker.service import Tracker

END = {"state": "stopping", "mode": "drain", "code": 0, "why": "midflight down"}
FAILURE = END | {"code": 1, "why": "sft failed while the run was ending: exit code 1"}
OVER = FAILURE | {"state": "over"}
AGAIN = {"generation": 1}


class NoBus:
    """Nobody is there."""

    def now(self) -> float:
        """It stands still."""
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """Lost."""
        return True


@pytest.mark.parametrize(
    ("drained", "told", "status"),
    [
        (True, [("run.state", END)], "finished"),
        (True, [("run.state", END), ("run.state", FAILURE)], "failed"),
        (True, [("run.state", FAILURE), ("run.state", OVER), ("kernel.boot", AGAIN), ("run.state", END)], "finished"),
        (True, [("run.state", OVER), ("kernel.boot", AGAIN)], "finished"),
        (False, [("run.state", END)], "killed"),
    ],
)
def test_the_end_is_told_as_it_was(
    drained: bool, told: list[tuple[str, dict[str, Any]]], status: str, tmp_path: Path
) -> None:
    """A drain in which a service failed has not finished; what a resumed run's former part came to does not count."""
    (tmp_path / "config.json").write_text("{}")
    config = TrackerConfig(sinks=[])
    tracker = Tracker(
        "tracker#1", NoBus(), Settings(tmp_path, "r-1", "tracker", "tracker", "", config, {}, 0, (), {}, tmp_path, {})
    )
    tracker.start()
    for number, (topic, body) in enumerate(told, 1):
        tracker.follow.take(Event(**{**Event.EXAMPLE, "seq": number, "topic": topic, "body": body}))
    tracker.draining = "midflight down" if drained else None
    tracker.close()
    record = read_from(tmp_path / "metrics.jsonl", 0).records[-1]
    assert (record["event"], record["values"]) == ("end", {"status": status})
