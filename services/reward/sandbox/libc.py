"""System calls that the standard library does not wrap. Errors are OSError with the name of the call."""

import ctypes
import os
import platform
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MACHINE = platform.machine()
_MOUNT_SETATTR, _AT_RECURSIVE, _MOUNT_RDONLY = 442, 0x8000, 1


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def checked(result: int, what: str) -> int:
    """Return a system call's result. Raises OSError if it failed."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    """Make a system call by its number."""
    return checked(_LIBC.syscall(number, *arguments), what)


def _prctl(option: int, value: int, what: str) -> None:
    checked(_LIBC.prctl(option, value, 0, 0, 0), what)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. A change of user undoes it."""
    _prctl(_PDEATHSIG, signal.SIGKILL, "prctl(PDEATHSIG)")


def dumpable(allowed: bool) -> None:
    """Say whether processes of the same user may look into this one by ptrace, /proc/PID/mem, /proc/PID/fd."""
    _prctl(_DUMPABLE, allowed, "prctl(DUMPABLE)")


def no_new_privileges() -> None:
    """Make set-user-id programs and file capabilities powerless from here on."""
    _prctl(_NO_NEW_PRIVS, 1, "prctl(NO_NEW_PRIVS)")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    checked(_LIBC.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    result = _LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())
    checked(result, f"mount {target}")


def keep_mounts_private() -> None:
    """What is mounted from here on is not seen outside this mount namespace."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def read_only_mounts() -> None:
    """Make all that is mounted here read-only: modes, owners, times and attributes too. Needs Linux 5.12."""
    wanted = _MountAttributes(set=_MOUNT_RDONLY)
    syscall(_MOUNT_SETATTR, "mount_setattr /", -1, b"/", _AT_RECURSIVE, ctypes.byref(wanted), ctypes.sizeof(wanted))


def mount_proc() -> None:
    """Mount the /proc of this PID namespace."""
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def mount_tmpfs(target: str, options: str) -> None:
    """Mount an empty file system in memory."""
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(source: str, target: str) -> None:
    """Show the tree at `source` at `target` as well."""
    _mount(source, target, None, _MS_BIND | _MS_REC)
