"""Fault 27: Ctrl-C once, twice, three times, SIGTERM and a terminal that goes away, on `midflight up` in a real one."""

import json
import os
import pty
import select
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.chaos_run import BATCH, PYTHON_PATH, topology

from midflight.kernel.process import kill_marked, marked_processes, read_stat, wait_process
from midflight.kernel.rundir import shm_path
from midflight.services.ledger.status import offline

pytestmark = pytest.mark.alone

CTRL_C = b"\x03"
STUBBORN: dict[str, Any] = {"learner": {"step_s": 0.3}, "rollout": {"poison": [3], "poison_by": "loop", "slots": 1}}


class Terminal:
    """`midflight up` in a pseudo-terminal of its own."""

    def __init__(self, folder: Path, slots: dict[str, Any]) -> None:
        self.dir, self.text = folder / "run", ""
        path = folder / "chaos.yaml"
        path.write_text(json.dumps(topology(100 * BATCH, slots)))
        argv = [sys.executable, "-m", "midflight.kernel.cli.main", "up", str(path), "--run-dir", str(self.dir)]
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, argv, {**os.environ, "PYTHONPATH": PYTHON_PATH})
        self.started = read_stat(self.pid).started

    def reads(self, wanted: str, within_s: float = 30.0) -> None:
        """Wait until the terminal shows this."""
        deadline = time.monotonic() + within_s
        while wanted not in self.text:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(left, 0.0))
            assert ready, f"{wanted!r} was not shown in {within_s:g} s: {self.text[-800:]}"
            try:
                self.text += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended without showing {wanted!r}: {self.text[-800:]}") from None

    def ends(self, within_s: float) -> int:
        """Wait for the end, reading along; -> exit code."""
        deadline = time.monotonic() + within_s
        pidfd = os.pidfd_open(self.pid)
        try:
            while True:
                watched = [pidfd] if self.master < 0 else [pidfd, self.master]
                ready, _, _ = select.select(watched, [], [], max(deadline - time.monotonic(), 0.0))
                assert ready, f"it did not end in {within_s:g} s: {self.text[-800:]}"
                if pidfd in ready:
                    return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    self.hang_up()
        finally:
            os.close(pidfd)

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self.master)
        self.master = -1


@pytest.fixture
def terminal(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """One that trains; what it leaves is killed."""
    one = Terminal(tmp_path, getattr(request, "param", {"learner": {"step_s": 0.3}}))
    yield one
    run_id = json.loads((one.dir / "run.json").read_text())["run_id"]
    kill_marked(run_id)
    if one.master >= 0:
        one.hang_up()


def check(terminal: Terminal, whole: bool = True) -> None:
    """Nobody is left, the ledger balances, and what is trained is in the checkpoint, once."""
    run_id = json.loads((terminal.dir / "run.json").read_text())["run_id"]
    assert not marked_processes(run_id)
    assert not [*terminal.dir.glob("*.ipc"), *terminal.dir.glob("*.sock")]
    assert not shm_path(run_id).exists()
    assert not offline(terminal.dir / "ledger.sqlite", None).problems
    with closing(sqlite3.connect(terminal.dir / "ledger.sqlite")) as db:
        trained = [sample for (sample,) in db.execute("select id from sample where state = 'trained' order by id")]
    with closing(sqlite3.connect(terminal.dir / "effects.sqlite")) as db:
        effects = [sample for (sample,) in db.execute("select sample from effect order by sample")]
    assert len(set(effects)) == len(effects)
    if whole:
        assert trained == effects


def test_ctrl_c_drains(terminal: Terminal) -> None:
    """Once: it says so, hands in and checkpoints, exit 130."""
    terminal.reads("step 3")
    os.write(terminal.master, CTRL_C)
    terminal.reads("draining")
    assert terminal.ends(15) == 130
    check(terminal)


@pytest.mark.parametrize("terminal", [STUBBORN], indirect=True)
def test_ctrl_c_thrice_kills(terminal: Terminal) -> None:
    """Three times, each announced; bounded although a service is stuck in a loop."""
    terminal.reads("step 1")
    for word in ("draining", "stopping without finishing", "killing everything"):
        os.write(terminal.master, CTRL_C)
        terminal.reads(word)
    assert terminal.ends(15) == 130
    check(terminal, whole=False)


@pytest.mark.slow
def test_ctrl_c_twice_stops(terminal: Terminal) -> None:
    """Twice: SIGTERM in order, without finishing the work in hand."""
    terminal.reads("step 3")
    for word in ("draining", "stopping without finishing"):
        os.write(terminal.master, CTRL_C)
        terminal.reads(word)
    assert terminal.ends(15) == 130
    check(terminal, whole=False)


@pytest.mark.slow
def test_sigterm_drains(terminal: Terminal) -> None:
    """`kill` of the command line is the first Ctrl-C."""
    terminal.reads("step 3")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.ends(15) == 130
    check(terminal)


@pytest.mark.slow
def test_a_closed_terminal_drains(terminal: Terminal) -> None:
    """SIGHUP, and writing to a terminal that is gone, end the run as the first Ctrl-C does."""
    terminal.reads("step 3")
    run_id = json.loads((terminal.dir / "run.json").read_text())["run_id"]
    warden = next(stat for stat in marked_processes(run_id, "ledger")).parent
    started = read_stat(warden).started
    terminal.hang_up()
    assert wait_process(warden, started, 15)
    terminal.ends(5)
    check(terminal)
