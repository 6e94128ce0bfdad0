"""Single faults of processes, on a real run: who restarts, who does not, and what the run says about it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.chaos_run import BATCH, SERVICES, ChaosRun

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.rundir import shm_path
from midflight.messages.control import Status, StatusGet

pytestmark = pytest.mark.alone

Slots = dict[str, dict[str, Any]]
PACED: Slots = {"learner": {"step_s": 1.0}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")


def pids(run: ChaosRun) -> dict[str, int]:
    """Who lives under which process id."""
    return {name: stat.pid for name in SERVICES if (stat := run.process(name))}


def ask(run: ChaosRun) -> Status:
    """`midflight ps`, repeated while nobody answers."""
    with Client(run.dir) as client:
        for _ in range(10):
            try:
                answer = client.ask("ctl", StatusGet(), timeout_s=1.0).message
            except Unreachable:
                continue
            assert isinstance(answer, Status)
            return answer
    raise AssertionError("the kernel did not come back")


def events(run: ChaosRun, text: str) -> bool:
    """Whether some log of the run says this."""
    return any(text in path.read_text() for path in (run.dir / "logs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loop", "gil"])
def test_a_deaf_main_thread_is_found(tmp_path: Path, how: str) -> None:
    """Fault 2: an endless loop, and a C call that keeps the interpreter's lock, are silent, killed and replaced."""
    hang: Slots = {"rollout": {"poison": [3], "poison_by": how, "slots": 1}, "ledger": {"max_tries": 2}}
    with ChaosRun(tmp_path, BATCH, hang) as run:
        account = run.account(within_s=60)
    assert not account.problems, account


@pytest.mark.slow
def test_stopped_before_hello(tmp_path: Path) -> None:
    """Fault 3: a process that stops right after its start is killed at its start deadline and replaced."""
    with ChaosRun(tmp_path, 10 * BATCH, {"rollout": {"start_timeout_s": 4.0}, "learner": {"step_s": 1.0}}) as run:
        run.until("trained", BATCH)
        before = pids(run)["rollout-0"]
        run.hit("rollout-0", signal.SIGKILL)
        while pids(run).get("rollout-0", before) == before:
            assert not run.over(0.005)
        stopped = pids(run)["rollout-0"]
        run.hit("rollout-0", signal.SIGSTOP)
        while pids(run).get("rollout-0", stopped) == stopped:
            assert not run.over(0.1)
        account = run.account(within_s=60)
    assert not account.problems, account


def test_a_killed_kernel_readopts_everyone(tmp_path: Path) -> None:
    """Fault 4: five kernels are killed; every service goes on under its process id, and `ps` works each time."""
    with ChaosRun(tmp_path, 12 * BATCH, PACED) as run:
        run.until("trained", BATCH)
        before = pids(run)
        assert len(before) == len(SERVICES)
        for _ in range(5):
            boot = ask(run).boot
            assert run.hit("kernel", signal.SIGKILL)
            while ask(run).boot == boot:
                assert not run.over(0.01)
            assert pids(run) == before
        while any(service.state not in ("ready", "running") for service in ask(run).services):
            assert not run.over(0.05)
        account = run.account(within_s=60)
    assert not account.problems, account


def test_deaths_while_the_kernel_is_away_are_told(tmp_path: Path) -> None:
    """Kernel and both generators die together: the next kernel tells the ledger, so no lease waits its minute."""
    held: Slots = {"rollout": {"work_s": 0.5, "slots": 256}, "ledger": {"lease_s": 60.0}}
    with ChaosRun(tmp_path, 5 * BATCH, held) as run:
        run.until("running", BATCH)
        for name in ("kernel", "rollout-0", "rollout-1"):
            assert run.hit(name, signal.SIGKILL)
        account = run.account(within_s=30)
    assert not account.problems, account


def test_a_learner_killed_after_the_last_batch(tmp_path: Path) -> None:
    """It dies with all trained and nothing in a checkpoint; its successor hears "no more", restores, and goes on."""
    last: Slots = {"learner": {"dies_last": True, "checkpoint_every": 1000}}
    with ChaosRun(tmp_path, 3 * BATCH, last) as run:
        account = run.account(within_s=30)
        assert events(run, "learner#2")
    assert not account.problems, account


@pytest.mark.parametrize("point", ["before_commit", "after_commit_before_ack"])
def test_a_ledger_that_dies_at_its_commits(tmp_path: Path, point: str) -> None:
    """Fault 5: every generation of the ledger kills itself at its 8th transaction, on either side of the commit."""
    crash: Slots = {"ledger": {"env": {"MIDFLIGHT_CRASH_AT": f"{point}:8"}}}
    with ChaosRun(tmp_path, 5 * BATCH, crash) as run:
        account = run.account(within_s=60)
        assert events(run, "ledger#2")
    assert not account.problems, account


@pytest.mark.slow
def test_a_stopped_kernel_kills_nobody(tmp_path: Path) -> None:
    """Fault 7: the kernel stands still for 5 s; it gives everybody the time back, and no process id changes."""
    with ChaosRun(tmp_path, 12 * BATCH, PACED, warden=()) as run:
        run.until("trained", BATCH)
        before, kernel = pids(run), run.process("kernel")
        assert kernel is not None
        run.hit("kernel", signal.SIGSTOP)
        assert not run.over(5.0)
        run.hit("kernel", signal.SIGCONT)
        ask(run)
        run.until("trained", 8 * BATCH)
        assert pids(run) == before
        assert (same := run.process("kernel")) is not None
        assert same.pid == kernel.pid
        account = run.account(within_s=60)
    assert not account.problems, account


def test_a_crash_storm_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """Fault 23: a significant service that ends at every start is given up; the run says who and why, exit 1."""
    storm: Slots = {"reward": {"crash": True, "significant": True, "intensity": 3, "period_s": 60.0}}
    with ChaosRun(tmp_path, BATCH, storm) as run:
        account = run.account(within_s=60)
        said = (run.dir / "journal.bin").read_bytes()
    assert account.code == 1, account
    assert b"gave up after 4 exits" in said
    assert b"told to crash" in said
    assert not shm_path(run.id).exists()


@pytest.mark.slow
def test_descriptors_of_the_kernel_stay_flat(tmp_path: Path) -> None:
    """Fault 25: 40 restarts of a service and 40 clients later the kernel has no more descriptors than before."""
    with ChaosRun(tmp_path, 100 * BATCH, {"learner": {"step_s": 3600.0}}) as run:
        run.up()
        counts = []
        for _ in range(40):
            old = pids(run).get("rollout-0")
            ask(run)
            run.hit("rollout-0", signal.SIGKILL)
            while pids(run).get("rollout-0", old) == old:
                assert not run.over(0.02)
            kernel = run.process("kernel")
            assert kernel is not None
            counts.append(len(os.listdir(f"/proc/{kernel.pid}/fd")))
    assert max(counts[20:]) <= max(counts[:10]) + 3, counts


def test_everything_killed_then_resumed(tmp_path: Path) -> None:
    """Every process dies at once; the run goes on in its directory, and every sample is trained once all the same."""
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.3}}) as run:
        run.until("trained", 4 * BATCH)
        run.launched.warden.kill()
        assert run.over(5.0)
        run.resume()
        account = run.account(within_s=60)
    assert not account.problems, account


def test_sigterm_to_the_warden_leaves_nothing(tmp_path: Path) -> None:
    """A plain `kill` of the run: everybody ends in bounded time, sockets and shared memory go."""
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.5}}) as run:
        run.until("trained", BATCH)
        run.launched.warden.terminate()
        account = run.account(within_s=20)
        assert account.code == 0, account
        left = [problem for problem in account.problems if "left" in problem or "outlived" in problem]
        assert not left
        assert json.loads((run.dir / "run.json").read_text())["run_id"] == run.id
