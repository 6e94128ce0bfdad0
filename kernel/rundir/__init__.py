"""The run directory: where a run keeps its sockets, logs, ledger and checkpoints, and who holds it.

    <run dir>/  mode 0700
      lock                       flock of the process that owns the run; its text names the holder
      run.json                   how to reach the run, written once its sockets are bound
      config.json origins.json   the resolved topology and where each value came from
      warden.sock ctl.ipc ev.ipc data.ipc
      logs/ checkpoints/ samples/ ledger.sqlite metrics.jsonl
      journal.bin journal.0001.bin ...   the kernel's journal: the file being written, and closed ones
      parts/ attached/           configurations that swaps and attached controllers brought
    /dev/shm/midflight-<run id>/ mode 0700: weights; gone with the run, or swept by the next one

The order is create, hold, bind, publish: the flock comes before any bind because binding an ipc address
steals it from whoever had it, and stale sockets are only removed under the lock.
"""

from .directory import RunDir, RunInfo, new_run_id
from .errors import RunDirBusy, RunDirError, RunNotFound
from .files import atomic_write, file_system
from .find import find_run, link_current, newest_of
from .shm import create_shm, remove_shm, shm_path, sweep_shm

__all__ = [
    "RunDir",
    "RunDirBusy",
    "RunDirError",
    "RunInfo",
    "RunNotFound",
    "atomic_write",
    "create_shm",
    "file_system",
    "find_run",
    "link_current",
    "new_run_id",
    "newest_of",
    "remove_shm",
    "shm_path",
    "sweep_shm",
]
