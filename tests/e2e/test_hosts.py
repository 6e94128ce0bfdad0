"""A learner spread over two hosts, which here are two trees of processes that share nothing but TCP."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.e2e_run import (
    SLOW,
    Up,
    checkpoints,
    environment,
    hit,
    is_step,
    midflight,
    nothing_left,
    records,
    samples,
    tiny,
)
from support.hosts_run import Elsewhere, followers_of

from midflight.kernel.process import read_stat, wait_process

TWO = ("services.learner.ranks=2", "services.learner.hosts=2", "services.learner.meet=127.0.0.1")


def whole(up: Up, steps: int) -> None:
    """Every sample of the run is in one state, and each step was trained once with its 16."""
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert trained == dict.fromkeys(range(1, steps + 1), 16)
    assert {row["step"] for row in records(up.path) if is_step(row)} == set(range(1, steps + 1))
    assert midflight(up.folder, "ledger", "--run", str(up.path)).code == 0


def test_two_hosts_train(tmp_path: Path) -> None:
    """To the end, at which both commands leave; checkpoints hold the parts of both."""
    ticket = tmp_path / "run" / "learner.ticket"
    with Elsewhere(tmp_path / "elsewhere", ticket) as there, Up(tmp_path, tiny(tmp_path, steps=2), *TWO) as up:
        assert up.wait() == 0, up.output
        assert there.wait() == 0, there.said
        run_id = up.run_id()
    whole(up, 2)
    names = {path.name for path in checkpoints(up.path)[-1].iterdir()}
    assert {f"model-rank-{rank}-of-2.safetensors" for rank in (0, 1)} < names
    assert "the learner has trained to its end" in there.said
    assert not list((there.ranks_dir / "checkpoints").iterdir())
    assert list(nothing_left(up.path, run_id)) == []


@pytest.mark.slow
def test_a_rank_elsewhere_is_killed(tmp_path: Path) -> None:
    """It is named, with its host, and started again by itself."""
    ticket = tmp_path / "run" / "learner.ticket"
    with (
        Elsewhere(tmp_path / "elsewhere", ticket) as there,
        Up(tmp_path, tiny(tmp_path, "demo", 6, SLOW), *TWO, "services.learner.kl.type=loss") as up,
    ):
        up.step(3)
        there.kill_rank()
        assert up.wait() == 0, up.output
        assert there.wait() == 0, there.said
        run_id = up.run_id()
    assert f"rank 1 of the learner's 2, on host {os.uname().nodename}, is gone (killed by SIGKILL)" in up.output
    assert "learner#2 is running again" in up.output
    whole(up, 6)
    assert there.said.count("runs rank 1 of 2") == 2
    assert list((there.ranks_dir / "checkpoints").rglob("*.safetensors")), "the second group did not fetch"
    assert list(nothing_left(up.path, run_id)) == []


@pytest.mark.slow
def test_whoever_dies_is_replaced(tmp_path: Path) -> None:
    """The learner, the whole other host, a rank that hangs: each time the run goes on from the newest checkpoint."""
    ticket, steps = tmp_path / "run" / "learner.ticket", 14
    more = ("services.learner.collective_timeout_s=12",)
    with Up(tmp_path, tiny(tmp_path, "demo", steps, SLOW), *TWO, *more) as up:
        with Elsewhere(tmp_path / "first", ticket) as first:
            up.step(3)
            old = read_stat(first.rank())
            hit(up, "learner", signal.SIGKILL)
            assert wait_process(old.pid, old.started, 15.0), "it outlived its learner"
            up.step(6)
            assert first.rank() != old.pid
        with Elsewhere(tmp_path / "second", ticket) as second:
            up.step(9)
            assert followers_of(first.process.pid) == []
            second.kill_rank(signal.SIGSTOP)
            assert up.wait() == 0, up.output
            assert second.wait() == 0, second.said
    host = os.uname().nodename
    first_end, lost, hung = [line for line in up.output.splitlines() if " died: " in line]
    assert "learner#1 died: SIGKILL" in first_end
    assert f"rank 1 on host {host} of the learner's 2 is lost: " in lost or f"host {host} has not been heard" in lost
    assert f"rank 1 on host {host} of the learner's 2 did not answer within 12 s (collective_timeout_s)" in hung
    whole(up, steps)


@pytest.mark.slow
def test_hosts_that_do_not_come_end_the_run_with_what_to_do(tmp_path: Path) -> None:
    """Within `join_timeout_s`; and a host that brings too much is refused at once."""
    topology = tiny(tmp_path)
    with Up(tmp_path, topology, *TWO, "services.learner.join_timeout_s=4") as up:
        up.until("a ticket", (ticket := tmp_path / "run" / "learner.ticket").exists)
        with Elsewhere(tmp_path / "elsewhere", ticket, "--ranks", "5") as there:
            assert there.wait() == 1
            assert "it brings 5 ranks, and of this group's 2 only 1 are for other hosts" in there.said
        assert up.wait() != 0
    assert (
        "1 of the group's 2 ranks have not come from other hosts in 4 s (there: nobody): run `midflight join`"
        in up.output
    )


@pytest.mark.slow
def test_the_same_command_everywhere_by_torchrun(tmp_path: Path) -> None:
    """The real torchrun starts `midflight up` twice: one is the run, the other its rank."""
    run = tmp_path / "run"
    topology = tiny(tmp_path, steps=3)
    words = [f"services.learner.ticket={tmp_path / 'group.ticket'}", "services.learner.ranks=2", "--run-dir", str(run)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--no-python"]
    up = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "up", str(topology), *words]
    env = environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*torchrun, *up], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "runs rank 1 of 2" in done.stderr
    assert {row["step"] for row in records(run) if is_step(row)} == {1, 2, 3}
