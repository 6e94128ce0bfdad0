"""The limit on concurrent requests in a real run: a controller lowers it, the rollout keeps to it, a replay agrees."""

from pathlib import Path
from typing import Any

from support.e2e_run import SLOW, Up, midflight, tiny

from midflight.kernel.journal_files import read_events


def test_the_rollout_keeps_to_the_limit_that_the_controller_sets(tmp_path: Path) -> None:
    """A cache said to be full at a tenth: the limit falls by parts, the steps go on, and no sample is lost."""
    topology = tiny(tmp_path, steps=100_000, reward=SLOW)
    with Up(tmp_path, topology, "services.concurrency={kv_low: 0.05, kv_high: 0.1}") as up:
        low = up.event("a low limit", lambda record: 0 < told(record, "limit") <= 12)
        up.event(
            "no more than that running",
            lambda record: record.get("seq", 0) > low["seq"] and 0 < told(record, "active") <= told(record, "limit"),
        )
        lengths = midflight(tmp_path, "ledger", "--run", str(up.path), "--json").json["stats"]
        assert lengths["generated/n"] >= lengths["trained/n"] > 0
        assert 0 < lengths["trained/completion_p50"] <= lengths["trained/completion_max"]
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        assert up.wait() == 0, up.output
    decided = [event for event in read_events(up.path, topics={"controller"}) if "concurrency" in event["source"]]
    limits = [event["body"]["value/rollout.concurrency"] for event in decided]
    first = limits.index(22)  # 0.7 of the 32 slots, once a report says that the cache is fuller than that
    assert set(limits[:first]) <= {32}
    assert limits[first : first + 3] == sorted(limits[first : first + 3], reverse=True)
    again = midflight(tmp_path, "replay", str(up.path), "--json").json
    assert again["same"], again
    assert "concurrency" in {one["identity"].partition("#")[0] for one in again["controllers"]}
    assert midflight(tmp_path, "ledger", "--run", str(up.path), "--json").json["problems"] == []


def told(record: dict[str, Any], name: str) -> float:
    """A number of a rollout's report, 0 of any other record."""
    values = record.get("values", {})
    return float(values[name]) if "tokens_per_s" in values else 0.0
