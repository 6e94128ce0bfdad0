"""What the machine itself tells of a run's processes: memory, descriptors, shared memory, disk. Local runs only."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from midflight.kernel.rundir.shm import SHM_ROOT, shm_path
from midflight.messages.control import Status

DISK = ("journal.bin", "ledger.sqlite", "ledger.sqlite-wal", "metrics.jsonl", "checkpoints", "samples", "logs")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process. Bytes; `cpu_s` since it started."""

    pid: int
    rss: int
    fds: int
    threads: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class HostSample:
    """One look. Bytes; `ns` is wall clock."""

    ns: int
    processes: Mapping[str, ProcessUse] = field(default_factory=dict)
    total: int = 0
    available: int = 0
    shm: int = 0
    shm_free: int = 0
    disk: Mapping[str, int] = field(default_factory=dict)
    disk_free: int = 0


def look(ns: int, path: Path, run_id: str, pids: Mapping[str, int]) -> HostSample:
    """Look once; what has gone meanwhile is left out."""
    memory = psutil.virtual_memory()
    used = {name: use for name, pid in pids.items() if pid and (use := _process(pid))}
    shm = _size(shm_path(run_id)) if run_id else 0
    return HostSample(
        ns,
        used,
        memory.total,
        memory.available,
        shm,
        _free(SHM_ROOT),
        disk_use(path),
        _free(path),
    )


def pids_of(status: Status) -> dict[str, int]:
    """Process ids by name; the second of a name, as during a swap, by its identity."""
    found: dict[str, int] = {}
    for one in status.services:
        found[f"{one.name}#{one.generation}" if one.name in found else one.name] = one.pid
    return found


def disk_use(path: Path) -> dict[str, int]:
    """Bytes of the parts of a run directory."""
    return {name: size for name in DISK if (size := _size(path / name))}


def _process(pid: int) -> ProcessUse | None:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return ProcessUse(
                pid, process.memory_info().rss, process.num_fds(), process.num_threads(), times.user + times.system
            )
    return None


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _free(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
