"""The processes a warden has started: start, signal, reap, and leave nothing behind. Standard library only.

The parent reaps, and it reaps last: as long as an ended child is a zombie, its pid and its group number are its own,
so whatever it left in its group and whatever carries its marks is killed first. Because the warden is a subreaper,
every orphan below it becomes its child too and is reaped here as well.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .process import kill_group, kill_marked, marked_processes, processes, read_stat, signal_process

KEPT_GENERATIONS = 20
TAIL_LINES, TAIL_BYTES = 20, 4096


@dataclass(slots=True, eq=False)
class Child:
    """A process not reaped yet, so that its pid and group are still its own. `started` in clock ticks since boot."""

    name: str
    generation: int
    pid: int
    started: int
    out: Path
    process: subprocess.Popen[bytes]
    killed: bool = False

    def __str__(self) -> str:
        return f"{self.name}#{self.generation} (process {self.pid})"

    def signal(self, signum: int) -> None:
        """SIGKILL to the whole group; anything else to the leader, which knows how to end its own helpers."""
        if signum == signal.SIGKILL:
            self.killed = True
            kill_group(self.pid, signum)
        else:
            os.kill(self.pid, signum)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: `code` as in subprocess (negative: the signal); `oom` is a guess, see `Children.reap`."""

    child: Child
    code: int
    oom: bool
    out: str

    def how(self) -> str:
        """For people: `code 1` or `signal 9`."""
        return f"code {self.code}" if self.code >= 0 else f"signal {-self.code}"


class Children:
    """The living children in the order of their start."""

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._run_dir, self._run_id = run_dir, run_id
        self._by_pid: dict[int, Child] = {}
        self._newest: dict[str, int] = {}
        self._oom_kills = count_oom_kills()

    def living(self, name: str | None = None) -> list[Child]:
        """Children not reaped yet, oldest first; of one name if given."""
        return [child for child in self._by_pid.values() if name in (None, child.name)]

    def newest(self, name: str) -> int:
        """The highest generation of the name that was ever started here, 0 if none."""
        return self._newest.get(name, 0)

    def start(self, name: str, generation: int, argv: list[str], env: dict[str, str]) -> Child:
        """Run argv in a session of its own, output to logs/NAME.GENERATION.out. Raises OSError or ValueError.

        Output goes to a file because a pipe nobody reads blocks its writer. Nothing of Python runs between fork and
        exec: limits travel in the environment to `bootstrap_from_environment`.
        """
        logs = self._run_dir / "logs"
        out = logs / f"{name}.{generation}.out"
        origin = {"RUN_DIR": self._run_dir, "RUN_ID": self._run_id, "NAME": name, "GENERATION": generation}
        marks = {f"MIDFLIGHT_{key}": str(value) for key, value in origin.items()}
        # setproctitle (SGLang, vLLM) would overwrite the marks in /proc/PID/environ.
        marks |= {"MIDFLIGHT_WARDEN_PID": str(os.getpid()), "SPT_NOENV": "1"}
        with open(out, "ab", opener=private) as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **env, **marks},
            )
        child = Child(name, generation, process.pid, read_stat(process.pid).started, out, process)
        self._by_pid[child.pid] = child
        self._newest[name] = max(generation, self.newest(name))
        (logs / f"{name}.{generation - KEPT_GENERATIONS}.out").unlink(missing_ok=True)
        return child

    def reap(self) -> list[Ended]:
        """Collect every ended process without waiting; those started here are returned.

        `oom` is set for a SIGKILL that did not come from here, if the system's count of out-of-memory kills rose.
        """
        ended = []
        while (pid := _ended_pid()) is not None:
            child = self._by_pid.pop(pid, None)
            if child is not None:
                kill_group(pid)
                kill_marked(self._run_id, child.name, child.generation)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if child is not None:
                child.process.returncode = code
                oom = self._oom_kills_rose() and code == -signal.SIGKILL and not child.killed
                ended.append(Ended(child, code, oom, tail(child.out)))
        return ended

    def kill_everything(self) -> list[int]:
        """SIGKILL all children, adopted ones too, and all marked with the run id; returns the pids there were.

        Repeat it, reaping, until it returns nothing: every descendant becomes a child when its parent dies.
        """
        left = [stat for stat in processes() if stat.parent == os.getpid()] + marked_processes(self._run_id)
        for stat in left:
            signal_process(stat.pid, stat.started, signal.SIGKILL)
        return sorted({stat.pid for stat in left})

    def _oom_kills_rose(self) -> bool:
        before, self._oom_kills = self._oom_kills, count_oom_kills()
        return self._oom_kills > before


def _ended_pid() -> int | None:
    """A zombie child, left as it is."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def count_oom_kills() -> int:
    """How often this system has killed a process for want of memory since its boot; 0 where it does not count."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def tail(path: Path) -> str:
    """The last 20 lines, at most 4 KiB, of a text file, made printable; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    lines = text.splitlines()[-TAIL_LINES:]
    return "\n".join("".join(letter if letter.isprintable() else " " for letter in line) for line in lines)


def private(path: str, flags: int) -> int:
    """Opener for files only their owner may read."""
    return os.open(path, flags, 0o600)
