"""Workers join, leave, die and are replaced under load in one real run; what is trained is what was issued."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from support.e2e_run import SLOW, Up, events, hit, is_step, midflight, nothing_left, records, samples, tiny

BATCH = 16
MORE = """
extends: demo.yaml
run: elastic
services:
  ledger: {max_lag: 1000000}
  rollout: {slots: 8}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_come_and_go_under_load(tmp_path: Path) -> None:
    """Every step has a whole batch, no sample is lost, and long ones are trained as often as they were issued."""
    tiny(tmp_path, "demo", 1_000_000, SLOW)
    topology = tmp_path / "elastic.yaml"
    topology.write_text(MORE)
    with Up(tmp_path, topology) as up:
        where = ("--run", str(up.path))

        def do(*words: str) -> None:
            done = midflight(tmp_path, *words, *where, timeout_s=300.0)
            assert done.code == 0, done

        def go_on() -> None:
            up.step(1 + max((row["step"] for row in records(up.path) if is_step(row)), default=0))

        go_on()
        for slot, replicas in (("rollout", "2"), ("reward", "3")):  # join
            do("service", "scale", slot, replicas)
        go_on()
        for name, how in (("rollout-1", signal.SIGKILL), ("reward-2", signal.SIGKILL)):  # die
            hit(up, name, how)
        go_on()
        for slot, change in (("reward", "time_limit_s=9"), ("rollout", "temperature=0.9")):  # are replaced
            do("swap", slot, "--with", slot, change, "--probation", "3")
        go_on()
        for slot in ("rollout", "reward"):  # leave
            do("service", "scale", slot, "1")
        go_on()
        told = midflight(tmp_path, "ledger", *where, "--json").json["stats"]
        do("down")
        assert up.wait() == 0, up.output
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert set(trained.values()) == {BATCH}
    assert sorted(trained) == list(range(1, len(trained) + 1))
    assert midflight(tmp_path, "ledger", *where, "--json").json["problems"] == []
    assert {row["state"] for row in samples(up.path)} <= {"trained", "issued", "ready", "generated"}
    dead = {event["values"]["name"] for event in events(up.path, "service.exit") if event["values"]["signal"]}
    assert dead == {"rollout-1", "reward-2"}
    assert told["generated/n"] >= told["trained/n"] > 0
    assert "stale/n" not in told  # nothing is dropped for its age here, so nothing long is either
    assert told["kept"] == told["kept_long_completion"] == 1.0
    last = [row["values"] for row in records(up.path) if "trained/n" in row.get("values", {})][-1]
    assert last["trained/n"] == trained.total()
    for quantile in ("p50", "p90", "max"):
        assert last[f"trained/completion_{quantile}"] <= last["generated/completion_max"]
    assert (
        abs(last["trained/completion_p50"] - last["generated/completion_p50"]) <= last["generated/completion_max"] / 4
    )
    assert list(nothing_left(up.path, up.run_id())) == []
