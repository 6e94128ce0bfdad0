"""Linux process primitives for the warden and for everything it starts. Standard library only.

A process of a run carries its origin in its environment (`MIDFLIGHT_RUN_ID`, `MIDFLIGHT_NAME`,
`MIDFLIGHT_GENERATION` ...), so that one which left its session can still be found in /proc. Marks are read from the
environment a process was started with; one that clears it on exec is found only by being a descendant. A pid alone
names nothing for long: what is stored is (pid, started), `started` being the start time in clock ticks since boot,
field 22 of /proc/PID/stat.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXIT_PARENT_GONE = 3
SERVICE_OOM_SCORE = 500
"""Added to a service's out-of-memory score, so that the system kills a service before the warden or the kernel."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who a process is in its run, as its warden told it."""

    run_dir: Path
    run_id: str
    name: str
    generation: int
    warden_pid: int


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/PID/stat; `state` is the kernel's letter (Z: zombie), `started` clock ticks since boot."""

    pid: int
    parent: int
    state: str
    started: int


def require_linux() -> None:
    """Raise OSError where prctl, pidfd and /proc do not exist."""
    if sys.platform != "linux":
        raise OSError(
            f"midflight runs need Linux (prctl, pidfd, /proc) and this is {sys.platform}; "
            "use a Linux machine, a container or WSL 2"
        )


def _prctl(option: int, value: int) -> None:
    require_linux()
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def die_with_parent(expected_parent_pid: int) -> None:
    """Have the system SIGKILL this process, even a stopped one, when its parent dies.

    The order closes the race: a parent that died before the call is seen by the check. The parent must have started
    this process from its main thread: the signal is sent when the starting *thread* ends.
    Raises SystemExit(3), after a line on stderr, if the parent is already another one.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.getppid()
    if parent != expected_parent_pid:
        sys.stderr.write(
            f"process {os.getpid()}: its parent, process {expected_parent_pid}, is gone (the parent is now "
            f"{parent}); ending, because nothing outlives its warden\n"
        )
        raise SystemExit(EXIT_PARENT_GONE)


def become_subreaper() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def apply_limits(memory_bytes: int | None, nofile: int | None) -> None:
    """Bound this process and its future children; None leaves a limit alone, a stricter hard limit stays.

    memory_bytes bounds private writable memory per process (RLIMIT_DATA), not address space: CUDA and mapped
    checkpoints reserve far more addresses than memory. Beyond it allocation fails (MemoryError in Python).
    nofile bounds open file descriptors.
    """
    for kind, wanted in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_NOFILE, nofile)):
        if wanted is not None:
            hard = resource.getrlimit(kind)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (limit, limit))


def set_oom_score_adj(value: int) -> None:
    """Bias the system's choice of what to kill when memory runs out: -1000 (never) to 1000 (first).

    A hint: where /proc is read-only, or lowering is not permitted, nothing happens.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(value))


def bootstrap_from_environment(oom_score_adj: int = SERVICE_OOM_SCORE) -> Origin | None:
    """First call of every process a warden starts: die with it, apply the limits it set, say who we are.

    Call it from the main thread, before heavy imports. The kernel passes oom_score_adj=0.
    Returns None in a process no warden started (an attached service): nothing is changed there.
    Raises SystemExit(3) if the warden is gone.
    """
    env = os.environ
    if "MIDFLIGHT_WARDEN_PID" not in env:
        return None
    origin = Origin(
        run_dir=Path(env["MIDFLIGHT_RUN_DIR"]),
        run_id=env["MIDFLIGHT_RUN_ID"],
        name=env["MIDFLIGHT_NAME"],
        generation=int(env["MIDFLIGHT_GENERATION"]),
        warden_pid=int(env["MIDFLIGHT_WARDEN_PID"]),
    )
    die_with_parent(origin.warden_pid)
    memory, nofile = env.get("MIDFLIGHT_MEMORY_BYTES"), env.get("MIDFLIGHT_NOFILE")
    apply_limits(int(memory) if memory else None, int(nofile) if nofile else None)
    if oom_score_adj:
        set_oom_score_adj(oom_score_adj)
    return origin


def read_stat(pid: int) -> ProcessStat:
    """Identity and parent of a process, zombies included. Raises ProcessLookupError if there is none."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        raise ProcessLookupError(f"no process {pid}") from None
    # The command name, in parentheses, may itself hold spaces and parentheses.
    fields = line[line.rindex(b")") + 2 :].split()
    return ProcessStat(pid, parent=int(fields[1]), state=fields[0].decode(), started=int(fields[19]))


def is_alive(pid: int, started: int) -> bool:
    """Whether the process (pid, started) still runs; a zombie does not, nor does another with its pid."""
    try:
        stat = read_stat(pid)
    except ProcessLookupError:
        return False
    return stat.started == started and stat.state not in "ZX"


def _pidfd(pid: int, started: int) -> int | None:
    """Handle of exactly (pid, started), or None; the check after opening shuts out a reused pid."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if is_alive(pid, started):
        return handle
    os.close(handle)
    return None


def signal_process(pid: int, started: int, signum: int) -> bool:
    """Signal exactly the process (pid, started); False if it is gone."""
    handle = _pidfd(pid, started)
    if handle is None:
        return False
    try:
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_process(pid: int, started: int, timeout_s: float) -> bool:
    """Wait, at most timeout_s seconds, for the end of (pid, started), related to us or not; False on timeout."""
    handle = _pidfd(pid, started)
    if handle is None:
        return True
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    try:
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(handle)


def kill_group(leader_pid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal the process group of a leader that is ours and not yet reaped (else its number may be another's)."""
    if leader_pid <= 1:
        raise ValueError(f"kill_group: {leader_pid} is not the process group of a child")
    try:
        os.killpg(leader_pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def processes() -> Iterator[ProcessStat]:
    """Every process of this machine, in no order; those that end meanwhile are left out."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(ProcessLookupError):
                yield read_stat(int(entry))


def ancestry(pid: int) -> list[int]:
    """`pid`, its parent, and so on up to init; as far as they still live."""
    line: list[int] = []
    with contextlib.suppress(ProcessLookupError):
        while pid > 1 and pid not in line:
            line.append(pid)
            pid = read_stat(pid).parent
    return line


def marked_processes(run_id: str, name: str | None = None, generation: int | None = None) -> list[ProcessStat]:
    """Living processes whose start environment says they are of this run (and service, and generation).

    Never this process nor one of its ancestors. About 50 microseconds per process of the machine.
    """
    wanted: dict[str, object] = {"RUN_ID": run_id, "NAME": name, "GENERATION": generation}
    marks = [f"\0MIDFLIGHT_{key}={value}\0".encode() for key, value in wanted.items() if value is not None]
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            environ = b"\0" + Path(f"/proc/{int(entry)}/environ").read_bytes() if entry.isdigit() else b""
            if all(mark in environ for mark in marks):
                found.append(read_stat(int(entry)))
    spared = set(ancestry(os.getpid())) if found else set()
    return [stat for stat in found if stat.pid not in spared]


def kill_marked(run_id: str, name: str | None = None, generation: int | None = None) -> set[int]:
    """SIGKILL all `marked_processes`, and what they forked meanwhile (bounded rounds); returns the pids."""
    killed: set[int] = set()
    for _ in range(20):
        fresh = [stat for stat in marked_processes(run_id, name, generation) if stat.pid not in killed]
        if not fresh:
            break
        for stat in fresh:
            signal_process(stat.pid, stat.started, signal.SIGKILL)
            killed.add(stat.pid)
    return killed
