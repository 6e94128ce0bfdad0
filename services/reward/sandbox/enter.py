"""Builds the walls of a sandbox and starts its zygote inside as PID 1.

    start.py enter JOB_FD VERDICT_FD PARENT_PID {"level": ..., "python_path": [...], "network": ...}

As root it first becomes a user that nobody is, its own at every start. This process stays as the zygote's keeper: it
dies with its parent, the zygote dies with it, and its exit status is the zygote's (128 + N for signal N). Standard
library only. Ends with status 3 and the reason on stderr when the machine refuses.
"""

import json
import os
import sys
from typing import NoReturn

from . import libc
from .zygote import SHM, TMP

_FIRST_UID, _UIDS = 61184, 4096  # systemd's range for users without a name
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/ssl")
_TMP_BYTES, _SHM_BYTES = 64 << 20, 16 << 20
_REFUSED = 3


def main(arguments: list[str]) -> None:
    """Enter the sandbox; see the module."""
    jobs, verdicts, parent = map(int, arguments[:3])
    options = json.loads(arguments[3])
    try:
        libc.die_with_parent()
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # when memory runs out, the kernel takes this first
        code = [*sys.path, *options["python_path"], sys.prefix, sys.base_prefix, os.path.dirname(__file__)]
        paths = readable(code, network=options["network"])
        if os.getuid() == 0:
            drop_root(paths)
            libc.die_with_parent()
        if os.getppid() != parent:
            sys.exit(0)
        zygote = [
            sys.executable,
            "-I",
            "-u",
            sys.argv[0],
            "zygote",
            str(jobs),
            str(verdicts),
            json.dumps(paths),
        ]
        {"bwrap": by_bubblewrap, "namespaces": by_system_calls}[options["level"]](options, paths, zygote)
    except OSError as error:
        sys.stderr.write(f"{options['level']}: {error.strerror or error}\n")
        sys.exit(_REFUSED)


def readable(code: list[str], *, network: bool) -> list[str]:
    """What the sandbox may read: the system's programs and libraries, the interpreter, and the paths of `code`."""
    python = {os.path.abspath(path) for path in code if path and os.path.exists(path)}
    python |= {os.path.realpath(path) for path in python}
    wanted = {*_SYSTEM, *_FILES, *(_NETWORK if network else ()), *python}
    ours = {"/", TMP, SHM, "/dev", "/proc"}  # what the sandbox has of its own
    return sorted(path for path in wanted - ours if os.path.exists(path))


def drop_root(paths: list[str]) -> None:
    """Become a user without a name, who still reaches `paths`: /root, say, is closed to others."""
    uid = _FIRST_UID + os.getpid() % _UIDS
    closed = {folder for path in paths for folder in _parents(path) if not os.stat(folder).st_mode & 1}
    if closed:
        libc.unshare(libc.NEWNS)
        libc.keep_mounts_private()
        for folder in sorted(closed, key=len):
            below = [path for path in paths if path.startswith(folder + "/")]
            if not os.stat(folder).st_mode & 1:
                cover(folder, "mode=0755,size=64k", below)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.dumpable(True)  # else /proc/self, where user namespaces are set up, is root's


def _parents(path: str) -> list[str]:
    """The folders on the way to a path."""
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]


def cover(folder: str, options: str, below: list[str]) -> None:
    """Hide a folder under an empty file system, in which only the paths `below` it show through."""
    kept = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in sorted(below)}
    libc.mount_tmpfs(folder, options)
    for path, place in kept.items():
        if not os.path.exists(path):  # it may have come with one above it
            _make_place(path, folder=os.path.isdir(f"/proc/self/fd/{place}"))
            libc.bind(f"/proc/self/fd/{place}", path)
        os.close(place)


def _make_place(path: str, *, folder: bool) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if folder:
        os.mkdir(path, 0o755)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))


def by_bubblewrap(options: dict[str, object], paths: list[str], zygote: list[str]) -> NoReturn:
    """Become bubblewrap, which keeps the zygote as this process would."""
    argv = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    argv += ["--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"]
    argv += ["--share-net"] if options["network"] else []
    argv += ["--size", str(_TMP_BYTES), "--tmpfs", TMP]
    for path in paths:
        argv += ["--symlink", os.readlink(path), path] if path in _SYSTEM and os.path.islink(path) else []
        argv += ["--ro-bind", path, path] if not (path in _SYSTEM and os.path.islink(path)) else []
    argv += ["--proc", "/proc", "--dev", "/dev", "--size", str(_SHM_BYTES), "--tmpfs", SHM, "--chdir", TMP]
    os.execvp("bwrap", [*argv, "--", *zygote])  # noqa: S606, S607 (found on the PATH that `ladder` looked at)


def by_system_calls(options: dict[str, object], paths: list[str], zygote: list[str]) -> NoReturn:
    """Enter new namespaces and start the zygote there; wait for its end."""
    uid, gid = os.getuid(), os.getgid()
    flags = libc.NEWUSER | libc.NEWNS | libc.NEWPID | libc.NEWIPC | libc.NEWUTS | libc.NEWCGROUP
    libc.unshare(flags if options["network"] else flags | libc.NEWNET)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child:
        _keep(child)
    libc.die_with_parent()
    libc.keep_mounts_private()
    libc.read_only_mounts()  # Landlock does not keep modes, owners, times and attributes
    below = [path for path in paths if path.startswith(TMP + "/")]
    cover(TMP, f"mode=0755,size={_TMP_BYTES},nr_inodes=8192", below)
    if os.path.isdir(SHM):
        libc.mount_tmpfs(SHM, f"mode=0755,size={_SHM_BYTES},nr_inodes=256")
    try:
        libc.mount_proc()
    except OSError:  # a container that hides parts of its /proc; Landlock closes the old one
        zygote = [*zygote, "without-proc"]
    os.chdir(TMP)
    os.execve(zygote[0], zygote, {})  # noqa: S606 (drops the capabilities of the new namespace)


def _keep(child: int) -> NoReturn:
    """Wait for the zygote, which outlives its last process, and end like it."""
    for fd in range(3):
        os.close(fd)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
