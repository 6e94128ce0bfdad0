import os
import select
import signal
import sqlite3
from pathlib import Path

import pytest

from midflight.kernel.process import is_alive, signal_process, wait_process
from midflight.services.tracker import MetricsLog, SinkProcess, sink_argv
from midflight.services.tracker.sink import State

PARTS = "wandb/offline-run-*-run1/run-run1.wandb"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / ".pkg"))


def _write(log: MetricsLog, steps: range) -> None:
    for step in steps:
        values = {"loss": step / 3, "reward": float("nan") if step == 4 else step / 7}
        log.append({"ts": 1000.0 + step, "source": f"learner#{1 + step // 20}", "step": step, "values": values})


def _await_offset(state: Path, sink: SinkProcess) -> None:
    """Wait until the sink has stored an offset, looking whenever 20 ms pass without its death."""
    assert sink.pid is not None
    death = select.poll()
    death.register(os.pidfd_open(sink.pid))
    while State.load(state).offset == 0:
        assert not death.poll(20), (state.parent / "log").read_text()


def _kill(sink: SinkProcess) -> None:
    assert sink.pid is not None
    os.kill(sink.pid, signal.SIGKILL)
    assert sink.close(20.0)


def test_mlflow_rows_survive_a_killed_sink_once(tmp_path: Path) -> None:
    """SIGKILL, even between the backend's answer and the stored offset, neither loses nor doubles a row or a run."""
    log, state, database = MetricsLog(tmp_path / "m.jsonl"), tmp_path / "state", tmp_path / "mlflow.db"
    argv = sink_argv("mlflow", tmp_path / "m.jsonl", state, "run-1", project="demo", uri=f"sqlite:///{database}")
    log.append({"ts": 1.0, "event": "params", "values": {"optim.lr": 1e-3, "odd@name": "x" * 9000}})
    _write(log, range(20))
    sink = SinkProcess(argv, tmp_path / "log")
    sink.tick(0.0)
    _await_offset(state, sink)
    _kill(sink)
    state.unlink()  # as if killed before it was written: the run is found by its tag
    _write(log, range(20, 30))
    log.append({"ts": 2.0, "event": "params", "values": {"optim.lr": 5e-4}})
    log.append({"ts": 2.0, "event": "knob", "step": 7, "values": {"knob": "kl.coef", "value": 0.25}})
    log.append({"ts": 3.0, "event": "end", "values": {"status": "finished"}})
    again = SinkProcess(argv, tmp_path / "log")
    again.tick(0.0)
    assert again.close(60.0), (tmp_path / "log").read_text()

    with sqlite3.connect(database) as store:
        rows = store.execute("SELECT key, step, value, is_nan FROM metrics ORDER BY key, step").fetchall()
        runs = store.execute("SELECT status, name FROM runs").fetchall()
        params = dict(store.execute("SELECT key, value FROM params").fetchall())
        journal = store.execute("PRAGMA journal_mode").fetchone()
    store.close()
    losses = [("learner/loss", step, step / 3, 0) for step in range(30)]
    rewards = [("learner/reward", step, 0.0 if step == 4 else step / 7, int(step == 4)) for step in range(30)]
    assert rows == [("hp/kl.coef", 7, 0.25, 0), *losses, *rewards]
    assert runs == [("FINISHED", "run-1")]
    assert params == {"optim.lr": "0.001", "odd_name": "x" * 6000}
    assert journal == ("wal",)
    assert State.load(state).offset == (tmp_path / "m.jsonl").stat().st_size


def test_wandb_rows_survive_a_killed_sink_once(tmp_path: Path) -> None:
    """Offline parts, read back by W&B's own reader, hold every row once, on the step axis of its service."""
    from midflight.services.tracker.sinks_wandb import history

    log, state = MetricsLog(tmp_path / "m.jsonl"), tmp_path / "state"
    argv = sink_argv("wandb", tmp_path / "m.jsonl", state, "run1", project="demo", dir=str(tmp_path))
    log.append({"ts": 1.0, "event": "params", "values": {"optim.lr": 1e-3}})
    _write(log, range(500))
    log.append({"ts": 2.0, "source": "rollout-0#1", "step": 3, "values": {"tokens": 5}})  # its step goes back
    sink = SinkProcess(argv, tmp_path / "log")
    sink.tick(0.0)
    _await_offset(state, sink)
    _kill(sink)
    for pid, started in State.load(state).helpers:  # wandb-core writes what it holds, then follows its parent
        assert wait_process(pid, started, 20.0)
    (first,) = tmp_path.glob(PARTS)
    os.truncate(first, first.stat().st_size // 2)  # what a killed writer still held back is lost
    log.append({"ts": 3.0, "event": "end", "values": {"status": "finished"}})
    again = SinkProcess(argv, tmp_path / "log")
    again.tick(0.0)
    assert again.close(60.0), (tmp_path / "log").read_text()

    parts = [list(history(part)) for part in sorted(tmp_path.glob(PARTS))]
    assert all(len(rows) > 100 for rows in parts)
    rows = [row for rows in parts for row in rows]
    losses = [(row["learner/step"], row["learner/loss"]) for row in rows if "learner/loss" in row]
    assert losses == [(step, pytest.approx(step / 3)) for step in range(500)]
    assert [(row["rollout-0/step"], row["rollout-0/tokens"]) for row in rows if "rollout-0/tokens" in row] == [(3, 5)]


def test_a_writer_that_outlives_its_sink_ends_before_the_next_begins(tmp_path: Path) -> None:
    """wandb-core stands still while its sink is killed: had it gone on later, rows would be there twice."""
    log, state = MetricsLog(tmp_path / "m.jsonl"), tmp_path / "state"
    argv = sink_argv("wandb", tmp_path / "m.jsonl", state, "run1", project="demo", dir=str(tmp_path))
    _write(log, range(10))
    sink = SinkProcess(argv, tmp_path / "log")
    sink.tick(0.0)
    _await_offset(state, sink)
    ((core, started),) = State.load(state).helpers
    assert signal_process(core, started, signal.SIGSTOP)
    _kill(sink)
    log.append({"ts": 3.0, "event": "end", "values": {"status": "finished"}})
    again = SinkProcess(argv, tmp_path / "log")
    again.tick(0.0)
    assert again.close(60.0), (tmp_path / "log").read_text()
    assert not is_alive(core, started)
