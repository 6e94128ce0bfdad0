import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from midflight.services.reward import Pool, RewardFileError, Spec
from midflight.services.reward.slot import send_ahead


def test_an_unusable_file_is_refused_before_any_process_starts(tmp_path: Path) -> None:
    """A missing file and a syntax error are reported at once, with the line."""
    with pytest.raises(RewardFileError, match=r"none\.py: the reward file cannot be read: No such file"):
        Pool(Spec(tmp_path / "none.py"))
    (tmp_path / "bad.py").write_text("x = 1\ndef reward_fn(:\n")
    with pytest.raises(RewardFileError, match=r"bad\.py:2: the reward file is not Python"):
        Pool(Spec(tmp_path / "bad.py"))
    with pytest.raises(ValueError, match="isolation 'full' is not available"):
        Pool(Spec(tmp_path / "bad.py", level="full"))


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL to the service leaves no worker behind, not even one that hangs."""
    (tmp_path / "rewards.py").write_text("import signal\ndef reward_fn(m, a):\n    signal.pause()\n")
    parent = """
import math, os, pathlib, select, signal
from midflight.services.reward import Job, Pool, Spec
pool = Pool(Spec(pathlib.Path("rewards.py"), scratch=pathlib.Path(".")))
pool.tick(0.0)
poller = select.poll()
poller.register(pool.fileno())
pool.submit(Job(1, [], None))
while not pool.ready or pool.next_deadline() == math.inf:
    poller.poll()
    pool.on_readable(0.0)
print(pool.pids[0], flush=True)
signal.pause()
"""
    path = str(Path(__file__).parents[2] / ".pkg")
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        death = select.poll()
        death.register(os.pidfd_open(int(process.stdout.readline())))
        process.kill()
    assert death.poll(20_000), "the worker outlived its parent"


@pytest.mark.parametrize(("seconds", "jobs"), [(0.0, 64), (1e-5, 64), (1e-3, 5), (0.004, 1), (10.0, 1)])
def test_few_jobs_wait_behind_a_slow_one(seconds: float, jobs: int) -> None:
    """About 5 ms of work is sent ahead: many quick jobs, never more than one slow one."""
    assert send_ahead(seconds) == jobs
