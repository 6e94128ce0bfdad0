"""The folders of a sandbox from one call to the next: nothing that a call did to them is there for the next one.

Whatever changes a folder or file, its mode, times and attributes too, moves its change time, which no call can set. So
what has the same change time, older than the clock's step, is as it was. Folders of the calls' own are emptied and set
back; in folders that only the import may write, a call has no business, and a change there spoils the sandbox.
"""

import os
import time

_MOST_FILES = 4096  # beyond, dropping the file system is quicker than emptying it
_STEP_NS = 20_000_000  # more than the step of the clock that stamps files: 10 ms at the coarsest
Stamp = tuple[int, int, int]


class Places:
    """`own` are the calls' folders, empty; `kept` are folders of which the first is looked at alone, the others whole.

    To be made when `kept` is as it shall be. Takes 20 ms, so that no change can bear the same time.
    """

    def __init__(self, own: tuple[str, ...], kept: tuple[str, ...]) -> None:
        self._own = {folder: os.stat(folder).st_ctime_ns for folder in own}
        self._kept = {path: _stamp(path) for path in (kept[0], *_beneath(kept[1:]))}
        self._began = 0
        time.sleep(_STEP_NS / 1e9)

    def begin(self) -> None:
        """Note when a call begins."""
        self._began = time.time_ns()

    def restored(self) -> bool:
        """Set everything back after a call; whether it worked, and was worth while."""
        old = self._began - _STEP_NS
        try:
            for folder, changed in self._own.items():
                now = os.stat(folder).st_ctime_ns
                if now != changed or now >= old:
                    if not emptied(folder):
                        return False
                    self._own[folder] = os.stat(folder).st_ctime_ns
            return all(_stamp(path) == stamp for path, stamp in self._kept.items())
        except OSError:
            return False


def _stamp(path: str) -> Stamp:
    found = os.lstat(path)
    return found.st_ctime_ns, found.st_ino, found.st_mode


def _beneath(folders: tuple[str, ...]) -> list[str]:
    """The folders, and all that is in them."""
    found = list(folders)
    for folder in folders:
        for where, inner, files in os.walk(folder):
            found += [os.path.join(where, name) for name in (*inner, *files)]
    return found


def emptied(folder: str) -> bool:
    """Empty a folder and set back its mode, times and attributes; whether it worked, and was worth while."""
    try:
        os.chmod(folder, 0o700)
        if names := os.listdir(folder):
            room = os.statvfs(folder)
            if room.f_files - room.f_ffree > _MOST_FILES:
                return False
            for name in names:
                _remove(os.path.join(folder, name))
        for attribute in _attributes(folder):
            os.removexattr(folder, attribute)
        os.utime(folder, ns=(0, 0))
    except (OSError, RecursionError):
        return False
    return True


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        from shutil import rmtree  # most calls leave none, and what is imported makes each call's fork dearer

        rmtree(path)
    else:
        os.unlink(path)


def _attributes(folder: str) -> list[str]:
    try:
        return [name for name in os.listxattr(folder) if name.startswith("user.")]
    except OSError:  # a file system without them
        return []
