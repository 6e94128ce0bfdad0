"""A real run as a user starts it: `midflight up` in a directory, watched through its files, steered by its verbs."""

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midflight.kernel.process import marked_processes, read_stat, signal_process, wait_process
from midflight.kernel.rundir import RunDir, shm_path

VERB = [sys.executable, "-P", "-m", "midflight.kernel.cli.main"]
CONFIGS = Path(__file__).parents[2] / "configs"
REWARD = Path(__file__).with_name("e2e_reward.py")
SLOW = Path(__file__).with_name("e2e_slow_reward.py")
"""For runs that are interrupted at a certain step."""
SLOW_PARTS = Path(__file__).with_name("e2e_slow_parts.py")
"""The same with three named rewards."""
DEADLINE_S = 120.0
LOOK_S = 0.01

Record = dict[str, Any]

TINY = """
extends: {base}
run: {run}
services:
  ledger:
    data:
      train: task:rev6-10?rows=256&split=train
      evaluation: task:rev6-10?rows=64&split=eval
    prompts_per_rollout: 4
    responses_per_prompt: 4
    evaluation: {{every: 2, prompts: 16}}
  rollout: {{slots: 32}}
  reward: {{file: {reward}, trusted: true}}
  learner:
    steps: {steps}
    checkpoint_every: 2
    sft: {{steps: 20, batch_size: 16, checkpoint_every: 5, data: 'task:rev6-10?rows=640&split=train&seed=1&noise=0.5'}}
  tracker: {{sinks: []}}
"""
"""A topology of seconds: 16 samples a batch, an evaluation and a checkpoint every other step."""


def tiny(folder: Path, base: str = "demo", steps: int = 6, reward: Path = REWARD) -> Path:
    """Write the tiny topology into `folder`."""
    path = folder / f"{base}.yaml"
    path.write_text(TINY.format(base=CONFIGS / f"{base}.yaml", run=base, steps=steps, reward=reward))
    return path


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON object."""
        return json.loads(self.out)


def midflight(folder: Path, *arguments: str, timeout_s: float = DEADLINE_S) -> Done:
    """Run one verb in `folder` to its end."""
    ended = subprocess.run(
        [*VERB, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout_s
    )
    return Done(ended.returncode, ended.stdout, ended.stderr)


def environment() -> dict[str, str]:
    """The test's environment, without what would make it part of a run."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT_")}


class Up:
    """One `midflight up`, running. Its run lives in `folder`/run unless `where` says otherwise."""

    def __init__(self, folder: Path, topology: Path, *arguments: str, where: str = "run") -> None:
        self.folder, self.path = folder, folder / where
        self._seen = len(records(self.path))
        self._output = os.open(folder / "up.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._from = os.fstat(self._output).st_size
        self.process = subprocess.Popen(
            [*VERB, "up", str(topology), "--run-dir", str(self.path), *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._handle = os.pidfd_open(self.process.pid)

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill_everything()
        os.close(self._output)
        os.close(self._handle)

    @property
    def output(self) -> str:
        """What this `up` has printed so far."""
        with open(self.folder / "up.out", "rb") as file:
            file.seek(self._from)
            return file.read().decode()

    def ended(self, within_s: float) -> bool:
        """Wait for the end of the command, at most so long."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Its exit code; fails the test, with what it printed, when it does not end in time."""
        assert self.ended(timeout_s), f"still running after {timeout_s} s:\n{self.output}"
        return self.process.wait()

    def until(self, what: str, found: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
        """The first true value of `found`; fails the test when the run ends before, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            over = self.ended(LOOK_S)
            if over and not (value := found()):
                raise AssertionError(f"the run ended before {what}:\n{self.output}")
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s:\n{self.output}"
            if over:
                break
        return value

    def event(self, what: str, matches: Callable[[Record], bool]) -> Record:
        """The first record of this `up` that matches."""

        def find() -> Record | None:
            return next((record for record in records(self.path)[self._seen :] if matches(record)), None)

        found: Record = self.until(what, find)
        return found

    def step(self, number: int) -> Record:
        """Wait for the metrics of a training step at or after `number`."""
        return self.event(f"step {number}", lambda record: is_step(record) and record["step"] >= number)

    def run_id(self) -> str:
        """The id of the run, once it is published."""
        found: str = self.until("run.json", lambda: (info := RunDir(self.path).info()) and info.run_id)
        return found

    def kill_everything(self) -> None:
        """SIGKILL the command, the warden, the kernel and every service, all at once; back when they are gone."""
        info = RunDir(self.path).info()
        doomed = marked_processes(info.run_id) if info else []
        lock = RunDir(self.path).lock
        pid = lock.holder()[0] if lock.is_live() else 0
        with contextlib.suppress(ProcessLookupError):
            doomed += [read_stat(one) for one in (pid, self.process.pid) if one]
        for stat in doomed:
            signal_process(stat.pid, stat.started, signal.SIGKILL)
        self.process.wait()
        for stat in doomed:
            assert wait_process(stat.pid, stat.started, 20.0), f"process {stat.pid} survived SIGKILL"
        if info:
            for stat in marked_processes(info.run_id):
                assert wait_process(stat.pid, stat.started, 20.0), f"process {stat.pid} outlived its warden"


def records(run: Path) -> list[Record]:
    """The whole lines of metrics.jsonl."""
    try:
        data = (run / "metrics.jsonl").read_bytes()
    except OSError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def is_step(record: Record) -> bool:
    """Whether it is the metrics of a training step."""
    return "event" not in record and "policy_loss" in record["values"]


def events(run: Path, topic: str) -> list[Record]:
    """All records of a topic with a name in the file."""
    return [record for record in records(run) if record.get("event") == topic]


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def weights(run: Path) -> str:
    """Digest of the newest checkpoint's model file."""
    return hashlib.sha256((checkpoints(run)[-1] / "model.safetensors").read_bytes()).hexdigest()


def samples(run: Path) -> list[Record]:
    """Every training sample of a run that is over: id, state, step, why."""
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        rows = db.execute("select id, grp, state, step, why, rewards from sample where id < ? order by id", (1 << 40,))
        return [dict(zip(("id", "group", "state", "step", "why", "rewards"), row, strict=True)) for row in rows]


def nothing_left(run: Path, run_id: str) -> Iterator[str]:
    """What a run that is over has left behind: processes, sockets, shared memory, a lock."""
    for stat in marked_processes(run_id):
        yield f"process {stat.pid}"
    for path in run.iterdir():
        if path.is_socket():
            yield str(path)
    if shm_path(run_id).exists():
        yield str(shm_path(run_id))
    if RunDir(run).is_live():
        yield "a held lock"


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def copy_run(run: Path, to: Path) -> Path:
    """A copy of a run directory that is over."""
    return Path(shutil.copytree(run, to, symlinks=True))


def hit(up: Up, name: str, signum: int) -> None:
    """Signal the living process of a service, or the kernel."""

    def find() -> bool:
        own = [stat for stat in marked_processes(up.run_id(), name) if leads(stat.pid)]
        return any(signal_process(stat.pid, stat.started, signum) for stat in own)

    up.until(f"{name} to hit", find)


def leads(pid: int) -> bool:
    """Whether it is the service itself, the leader of its session, and not a helper it started."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
