"""Process primitives: identity and the tie to the parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import midflight
from midflight.kernel.process import read_stat, signal_process, wait_process


def test_process_whose_parent_is_gone_says_so(tmp_path: Path) -> None:
    """A child that starts after its warden's death ends at once, with code 3 and a reason."""
    code = "from midflight.kernel.process import die_with_parent; die_with_parent(4194305)"
    env = {**os.environ, "PYTHONPATH": str(Path(midflight.__file__).parent.parent)}
    ended = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "its parent, process 4194305, is gone" in ended.stderr


def test_another_process_with_the_same_pid_is_not_signalled() -> None:
    """A process is its pid and its start time; a reused pid is somebody else."""
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    started = read_stat(child.pid).started
    assert not signal_process(child.pid, started - 1, signal.SIGKILL)
    assert wait_process(child.pid, started - 1, 0.0)
    assert not wait_process(child.pid, started, 0.0)
    assert signal_process(child.pid, started, signal.SIGKILL)
    assert wait_process(child.pid, started, 30.0)
    child.communicate()
