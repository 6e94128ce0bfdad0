"""A real run's past and future by the verbs that read its journal and follow its events."""

import json
import signal
from pathlib import Path

from support.e2e_run import Up, hit, midflight, tiny

from midflight.kernel.journal_files import read_events

ENDLESS = 1_000_000


def test_history_wait_and_metrics(tmp_path: Path) -> None:
    """Waited for, steered, its kernel killed, drained: the same is told while it lives and when it is over."""
    with Up(tmp_path, tiny(tmp_path, "demo", ENDLESS)) as up:
        up.run_id()
        where = ("--run", str(up.path))
        assert midflight(tmp_path, "wait", *where, "--for", "ready", "--timeout", "100").code == 0
        assert midflight(tmp_path, "wait", *where, "--for", "step=2", "--timeout", "100").code == 0
        assert midflight(tmp_path, "wait", *where, "--for", "done", "--timeout", "0.5").code == 5
        assert midflight(tmp_path, "set", *where, "optim.lr=4e-4", "--reason", "slower").code == 0
        hit(up, "kernel", signal.SIGKILL)
        step = json.loads(midflight(tmp_path, "metrics", *where, "--json", "--last", "1").out)["step"]
        after = midflight(tmp_path, "wait", *where, "--for", f"step={step + 3}", "--timeout", "100")
        assert after.code == 0, after.err
        live = midflight(tmp_path, "history", *where, "--json", "optim.lr").json["changes"]
        assert midflight(tmp_path, "down", *where).code == 0
        assert up.wait() == 0, up.output
    assert midflight(tmp_path, "wait", *where, "--for", "drained").code == 0
    (change,) = midflight(tmp_path, "history", *where, "--json", "optim.lr").json["changes"]
    assert [change] == live
    assert change["old"] != change["new"]
    assert (change["new"], change["by"], change["why"]) == (0.0004, "operator", "slower")
    assert change["since"] > 1
    told = midflight(tmp_path, "history", *where, "--slot", "kl")
    assert "kl.coef" in told.out, told.err
    assert "optim.lr" not in told.out
    seqs = [event["seq"] for event in read_events(up.path)]
    assert seqs == list(range(1, len(seqs) + 1))
    rows = [
        json.loads(line)
        for line in midflight(tmp_path, "metrics", *where, "--json", "--last", "0", "lr").out.splitlines()
    ]
    # What the killed kernel had not taken is sent again, maybe behind a newer step: none is lost, and none is twice.
    assert sorted(row["step"] for row in rows) == list(range(1, len(rows) + 1))
    assert rows[-1]["values"] == {"lr": 0.0004}
