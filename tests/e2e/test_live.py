"""Steering a live run by its verbs, draining it, and going on from the very step it reached."""

import signal
from pathlib import Path

from support.e2e_run import Up, checkpoints, is_step, midflight, nothing_left, records, samples, tiny

from midflight.kernel.rundir import RunDir
from midflight.services.learner.checkpoints.checkpoint import verify

ENDLESS = 1_000_000


def test_verbs_drain_and_resume(tmp_path: Path) -> None:
    """One run: every verb answers, Ctrl-C drains, --resume loses no step, down ends it."""
    topology = tiny(tmp_path, "demo", ENDLESS)
    with Up(tmp_path, topology) as up:
        up.step(2)
        look(tmp_path, up)
        steer(tmp_path, up)
        refusals(tmp_path, up)
        busy(tmp_path, topology, up)
        up.process.send_signal(signal.SIGINT)
        assert up.wait() == 130, up.output
        assert "Ctrl-C: draining" in up.output
    reached = last_step(up.path)
    assert verify(checkpoints(up.path)[-1]).extra["step"] == reached
    assert list(nothing_left(up.path, up.run_id())) == []
    with Up(tmp_path, topology, "--resume") as again:
        first = again.event("a step", is_step)
        assert first["step"] == reached + 1
        knob = midflight(tmp_path, "get", "--run", str(up.path), "--json", "optim.lr").json["knobs"][0]
        assert knob["value"] == 0.0004
        down = midflight(tmp_path, "down", "--run", str(up.path), "--json")
        assert down.code == 0, down.err
        assert down.json["mode"] == "drain"
        assert again.wait() == 0, again.output
    steps = [record["step"] for record in records(up.path) if is_step(record)]
    assert steps == list(range(1, steps[-1] + 1))
    counts = [sum(row["step"] == step for row in samples(up.path)) for step in range(1, steps[-1] + 1)]
    assert set(counts) == {16}
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0


def last_step(run: Path) -> int:
    """The newest trained step."""
    return max(int(record["step"]) for record in records(run) if is_step(record))


def look(folder: Path, up: Up) -> None:
    """ps, logs, get and ledger tell the truth about the run, by path, by name and as the newest."""
    status = midflight(folder, "ps", "--json", "--run", str(up.path)).json
    names = {service["name"]: service for service in status["services"]}
    assert set(names) == {"ledger", "rollout", "reward", "learner", "kl", "tracker"}
    assert {service["state"] for service in names.values()} <= {"ready", "running"}, names
    assert names["learner"]["stats"]["step"] >= 1
    table = midflight(folder, "ps")
    assert table.code == 0, table.err  # without --run: runs/current
    assert "learner#1" in table.out
    logs = midflight(folder, "logs", "--run", str(up.path), "--json", "learner", "--grep", "learner loaded")
    assert '"learner loaded"' in logs.out
    balance = midflight(folder, "ledger", "--run", str(up.path), "--json")
    assert balance.code == 0, balance.err
    assert balance.json["stats"]["live"] is True
    life = midflight(folder, "ledger", "--run", str(up.path), "--json", "--sample", "0").json["life"]
    states = [event["state"] for event in life]
    assert states[:5] == ["issued", "running", "generated", "scoring", "ready"]
    assert states[5:7] == ["leased", "trained"]
    assert [event["epoch"] for event in life] == sorted(event["epoch"] for event in life)


def steer(folder: Path, up: Up) -> None:
    """A person sets a free knob; it is applied at a step boundary and read back."""
    done = midflight(folder, "set", "--run", str(up.path), "--json", "optim.lr=4e-4", "--reason", "slower")
    assert done.code == 0, done.err
    assert done.json["version"] == 1
    applied = up.event(
        "the applied knob",
        lambda r: (
            r.get("event") == "knob.applied" and r["values"]["knob"] == "optim.lr" and r["values"]["version"] == 1
        ),
    )
    up.step(applied["values"]["step"])
    knob = midflight(folder, "get", "--run", str(up.path), "--json", "optim.lr").json["knobs"][0]
    assert (knob["value"], knob["version"], knob["reason"]) == (0.0004, 1, "slower")
    assert knob["applied_step"] == applied["values"]["step"]
    used = up.event("its use", lambda r: is_step(r) and r["step"] > applied["values"]["step"] + 5)
    assert used["values"]["lr"] == 0.0004


def refusals(folder: Path, up: Up) -> None:
    """3: no such run; 4: refused, with the owner or the bounds; 6: somebody else was faster."""
    where = ("--run", str(up.path))
    for arguments, code, text in (
        (("set", *where, "kl.coef=0.5"), 4, "kl#1"),
        (("set", *where, "optim.lr=5000"), 4, "optim.lr"),
        (("set", *where, "optim.lrr=1"), 4, "did you mean 'optim.lr'"),
        (("set", *where, "optim.lr=1e-4", "--if-version", "99"), 6, "version"),
        (("set", *where, "optim.lr"), 2, "NAME=VALUE"),
        (("ps", "--run", "nope"), 3, "no run 'nope'"),
        (("ledger", *where, "--sample", "999999"), 1, "never issued"),
    ):
        ended = midflight(folder, *arguments)
        assert (ended.code, text in ended.err) == (code, True), (arguments, ended)
        assert "Traceback" not in ended.err


def busy(folder: Path, topology: Path, up: Up) -> None:
    """A second `up` on a living run is refused and names the process that holds it."""
    holder = RunDir(up.path).lock.holder()[0]
    for arguments in ((), ("--resume",)):
        refused = midflight(folder, "up", str(topology), "--run-dir", str(up.path), *arguments)
        assert refused.code == 2
        assert f"in use by process {holder}" in refused.err
