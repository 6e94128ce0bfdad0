"""What can be wrong with a run directory: RunDirError > RunDirBusy, RunNotFound. Each text names the remedy."""

from pathlib import Path


class RunDirError(Exception):
    """A run directory that cannot be used."""


class RunDirBusy(RunDirError):
    """Another living process holds the run directory; `pid` is 0 when it did not say who it is."""

    def __init__(self, path: Path, pid: int) -> None:
        self.pid = pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{path} is in use by {who} - stop it with 'midflight down --run {path}' or choose another --run-dir"
        )


class RunNotFound(RunDirError):
    """No run matches what was asked for."""
