"""Landlock: what files a process and its children may touch, by path. Needs Linux 5.13; scopes need 6.12."""

import ctypes
import os
import stat
from collections.abc import Iterable

from .libc import syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_ALL = ((1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)  # rights by version, from 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15
_TCP, _SCOPES = 3, 3  # bind and connect; abstract sockets and signals


class _Attributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """Return the kernel's Landlock version, 0 if there is none."""
    try:
        return syscall(_CREATE, "landlock", None, 0, 1)
    except OSError:
        return 0


def rules(
    read: Iterable[str] = (), write: Iterable[str] = (), *, only_writing: bool = False, network: bool = True
) -> int:
    """Return a descriptor of rules: beneath `read` reading and executing, beneath `write` everything, else nothing.

    With `only_writing`, reading stays as it is. Without `network`, TCP is refused. Signals and abstract sockets reach
    only processes that are under the same rules. What does not exist is left out.
    """
    known = version()
    files = _ALL[min(known, len(_ALL)) - 1] & (~_READING if only_writing else -1)
    wanted = _Attributes(files, 0 if network or known < 4 else _TCP, 0 if known < 6 else _SCOPES)
    made = syscall(_CREATE, "landlock_create_ruleset", ctypes.byref(wanted), ctypes.sizeof(wanted), 0)
    for paths, rights in ((read, _READING), (write, files)):
        for path in filter(os.path.exists, paths):
            _allow(made, path, rights & files)
    return made


def _allow(made: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        if rights:
            rule = _Beneath(rights, place)
            syscall(_ADD, f"landlock_add_rule {path}", made, 1, ctypes.byref(rule), 0)
    finally:
        os.close(place)


def restrict(made: int) -> None:
    """Put this process, for good, under the rules; needs `no_new_privileges`."""
    syscall(_RESTRICT, "landlock_restrict_self", made, 0)
