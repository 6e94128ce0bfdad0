"""What the benchmarks share: the machine by name, CPU time of other processes, and a real run to measure."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.owner import environment
from midflight.kernel.process import wait_process
from midflight.kernel.rundir import RunDir
from midflight.kernel.spec import ServiceSpec
from midflight.messages.control import RunStop, ServiceStatus, Status, StatusGet

LOOK_S = 0.01
LIBRARIES = ("pyzmq", "msgpack", "pydantic", "torch", "transformers")


def as_a_service() -> None:
    """Start this program again with the threads and the allocator that a service has, unless it has them."""
    wanted = environment(ServiceSpec(kind="benchmark"))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions: what a figure means nothing without."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    load = [round(value, 1) for value in os.getloadavg()]
    return {"cpu": model, "cores": os.cpu_count(), "load": load, "kernel": platform.release(), "versions": versions}


def cpu_seconds(pid: int) -> float:
    """CPU time a living process has used, all its threads, in seconds (its POSIX CPU clock, ns resolution)."""
    return time.clock_gettime(~pid << 3 | 2)


def best(run: Callable[[], object], rounds: int) -> float:
    """CPU seconds of this thread, the least of `rounds` after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        run()
        times.append(time.thread_time_ns() - began)
    return min(times) / 1e9


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class LiveRun:
    """A run that is under way, as its clients see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = RunDir(path).info()
        self.warden, self.warden_started = RunDir(path).lock.holder()

    def status(self, timeout_s: float = 5.0) -> Status:
        """Ask the kernel. Raises Unreachable."""
        with Client(self.path) as client:
            answer = client.ask("ctl", StatusGet(), timeout_s).message
        assert isinstance(answer, Status)
        return answer

    def services(self) -> dict[str, ServiceStatus]:
        """Status of every service by name."""
        return {line.name: line for line in self.status().services}

    def kernel_pid(self) -> int:
        """Process id of the living kernel: the warden's child that runs `kernel.main`."""
        for child in Path(f"/proc/{self.warden}/task/{self.warden}/children").read_text().split():
            with suppress(OSError):
                if b"midflight.kernel.main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        raise LookupError(f"warden {self.warden} has no kernel")

    def until_ready(self, timeout_s: float = 60.0) -> dict[str, ServiceStatus]:
        """Wait until every service takes work. Raises TimeoutError with the states."""
        deadline = time.monotonic() + timeout_s
        states: dict[str, ServiceStatus] = {}
        while time.monotonic() < deadline:
            with suppress(Unreachable):
                states = self.services()
            if states and all(line.state in ("ready", "running") for line in states.values()):
                return states
            time.sleep(LOOK_S)
        raise TimeoutError(f"not ready: { {name: line.state for name, line in states.items()} }")

    def over(self, timeout_s: float) -> bool:
        """Wait for the end of the run."""
        return wait_process(self.warden, self.warden_started, timeout_s)


@contextmanager
def live_run(topology: str, folder: Path, *words: str) -> Iterator[LiveRun]:
    """Start `topology` (YAML text) as a user would, in `folder`; killed at the end if it still lives."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "topology.yaml"
    path.write_text(topology)
    command = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "up", str(path), "-d", "--run-dir", "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT_")}
    done = subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the run did not start:\n{done.stderr}")
    run = LiveRun(folder / "run")
    try:
        yield run
    finally:
        with suppress(Unreachable), Client(run.path) as client:
            client.ask("ctl", RunStop(mode="kill", why="benchmark over"))
        if not run.over(10):
            os.kill(run.warden, 9)


def show(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
