"""PID 1 of a sandbox: seals itself, imports the user's file, and forks one process for every call.

    start.py zygote JOB_FD VERDICT_FD [READABLE PATHS] [without-proc]

The same frames as `worker`, but the channel is this process's alone: a call has a pipe of its own, on which only bytes
behind a secret of this call count, and what it prints goes to a file in memory. When a call has ended, everything in
the namespace but this process is killed and reaped, and its folder emptied; a folder that resists ends this process,
and with it the file system it is on. Standard library only.
"""

import contextlib
import faulthandler
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from typing import NoReturn

from . import landlock, libc, seccomp
from .channel import ACTED, BEGIN, FAULT, HEADER, LARGEST_REPORT, LIMIT, MORE, SCORED, TAIL, Channel, frame
from .program import Program, outcome
from .worker import imported, limit, limit_job, limit_process

TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 (file systems of the sandbox's own)
_HOME, _AT_IMPORT = TMP + "/call", TMP + "/import"
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_PROCESSES = 64  # at a time, and two more per core for the threads of numeric libraries
_MOST_FILES = 4096  # beyond, dropping the file system is quicker than emptying it
_ABORT_GRACE = 0.2  # seconds between SIGABRT, which prints a hanging call's stack, and SIGKILL
_SECRET = 16  # bytes


def main(arguments: list[str]) -> None:
    """Start up and serve until the channel closes."""
    channel = Channel(int(arguments[0]), int(arguments[1]))
    channel.send(frame(MORE))  # the parent learns from it that there is somebody to kill
    _, length, _ = channel.header()
    init = json.loads(channel.body(length))
    os.environ.clear()
    os.environ.update(init["env"])
    for folder in (_HOME, _AT_IMPORT):
        os.mkdir(folder, 0o700)
    os.chdir(_AT_IMPORT)
    os.environ["HOME"] = _AT_IMPORT
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 is deaf to signals from inside that it does not handle
    sys.path += init["python_path"]
    seal(json.loads(arguments[2]), init["memory_bytes"], network=init["network"], proc="without-proc" not in arguments)
    program = imported(channel, init["path"], init["source"])
    Zygote(channel, program, init["time_limit_s"]).serve()


def seal(paths: list[str], memory_bytes: int, *, network: bool, proc: bool) -> None:
    """Close every door for good, before the first line of the user's runs."""
    limit_process(memory_bytes)
    limit(resource.RLIMIT_NPROC, _PROCESSES + 2 * (os.cpu_count() or 1))
    libc.no_new_privileges()
    libc.dumpable(False)
    if landlock.version():
        places = [*paths, *(["/proc"] if proc else [])]
        landlock.restrict(landlock.rules(places, [TMP, SHM, *_DEVICES], network=network))
    seccomp.install(network=network)


class Zygote:
    """Serves jobs, one process each."""

    def __init__(self, channel: Channel, program: Program, time_limit_s: float) -> None:
        self._channel, self._program, self._time_limit = channel, program, time_limit_s
        self._output, self._complaints = os.memfd_create("output"), os.dup(2)
        for stream in (1, 2):
            os.dup2(self._output, stream)
        self._rules = landlock.rules(write=[_HOME, SHM, *_DEVICES], only_writing=True) if landlock.version() else None
        self._around = os.listdir(TMP)  # without Landlock a call can write there: its like end this process
        gc.collect()
        gc.freeze()  # a collection in a call would copy every page of what was imported

    def serve(self) -> NoReturn:
        """Run jobs in order until the parent closes the channel or the folder cannot be emptied."""
        try:
            self._serve()
        except Exception:
            os.dup2(self._complaints, 2)  # the calls' output is not where the parent looks
            raise

    def _serve(self) -> NoReturn:
        while True:
            said, length, job = self._channel.header()
            if said == LIMIT:
                self._time_limit = json.loads(self._channel.body(length))
                continue
            self._channel.send(frame(BEGIN, job))
            kind, report = self._call(self._channel.body(length))
            clean = emptied(_HOME) and emptied(SHM) and os.listdir(TMP) == self._around
            os.ftruncate(self._output, 0)
            os.lseek(self._output, 0, os.SEEK_SET)
            self._channel.send(frame(kind, job, report))
            if not clean:
                os._exit(0)

    def _call(self, body: bytes) -> tuple[bytes, bytes]:
        """Run one job in a process of its own; nothing of it is left afterwards."""
        began = time.monotonic()
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        secret = os.urandom(_SECRET)
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            self._in_call(theirs, secret, body)
        os.close(theirs)
        death = os.pidfd_open(pid)
        try:
            said, overdue = self._listen(ours, death, began + self._time_limit)
            if overdue:
                os.kill(pid, signal.SIGABRT)
                select.select([death], [], [], _ABORT_GRACE)
        finally:
            status = kill_all(pid)
            os.close(ours)
            os.close(death)
        seconds = time.monotonic() - began
        if overdue:
            return self._fault("time", f"no result within {self._time_limit:g} s", seconds)
        return self._judge(said, secret, status, seconds)

    def _in_call(self, verdict: int, secret: bytes, body: bytes) -> NoReturn:
        """The process of one call."""
        me = os.getpid()
        try:
            os.close(self._channel.jobs)
            os.close(self._channel.verdicts)
            os.close(self._complaints)
            os.setsid()
            os.chdir(_HOME)
            os.environ["HOME"] = _HOME
            if "tempfile" in sys.modules:
                vars(sys.modules["tempfile"])["tempdir"] = None  # found again, now at home
            if self._rules is not None:
                landlock.restrict(self._rules)
                os.close(self._rules)
            faulthandler.enable()
            limit_job(self._time_limit)
            kind, report = outcome(self._program, body)
            if os.getpid() == me:  # a fork that the function left behind must not answer
                said = secret + frame(kind, 0, report)
                while said:
                    said = said[os.write(verdict, said) :]
        finally:
            os._exit(0)

    def _listen(self, verdict: int, death: int, deadline: float) -> tuple[bytes, bool]:
        """Gather what the call says until it ends, is complete, too long, or late (True); end with the parent."""
        said = bytearray()
        poller = select.poll()
        poller.register(verdict, select.POLLIN)
        poller.register(death, select.POLLIN)
        poller.register(self._channel.jobs, 0)  # hang-up alone
        os.set_blocking(verdict, False)
        while len(said) < _complete(said):
            ready = dict(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                return bytes(said), True
            if self._channel.jobs in ready:
                os._exit(0)
            chunk = _read(verdict) if verdict in ready else None
            said += chunk or b""
            if chunk == b"":
                poller.unregister(verdict)
            elif chunk is None and death in ready:
                break
        return bytes(said), False

    def _judge(self, said: bytes, secret: bytes, status: int, seconds: float) -> tuple[bytes, bytes]:
        """Make a report of what a call said and how it ended."""
        body = said[_SECRET + HEADER.size :]
        if len(said) == _complete(said) and said.startswith(secret):
            kind, _, _ = HEADER.unpack_from(said, _SECRET)
            if kind in (SCORED, ACTED, FAULT) and len(body) <= LARGEST_REPORT:
                return kind, body
        if said:
            return self._fault("returned", "wrote to the verdict channel", seconds)
        how = f"exited with status {status}" if status >= 0 else f"was killed by signal {-status}"
        why = f"the process of the call {how} before its function returned"
        return self._fault("exit", why, seconds, doubtful=status == -signal.SIGKILL)

    def _fault(self, blame: str, why: str, seconds: float, *, doubtful: bool = False) -> tuple[bytes, bytes]:
        size = os.fstat(self._output).st_size
        tail = os.pread(self._output, TAIL, max(0, size - TAIL)).decode(errors="replace").strip()
        fault = {"blame": blame, "why": why, "tail": tail, "seconds": seconds, "doubtful": doubtful}
        return FAULT, json.dumps(fault).encode()


def _read(pipe: int) -> bytes | None:
    """Some of what a pipe holds: nothing at its end, None when it holds nothing now."""
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return None


def _complete(said: bytes | bytearray) -> int:
    """How long the report that has begun will be; more than there may be is as good as complete."""
    if len(said) < _SECRET + HEADER.size:
        return _SECRET + HEADER.size
    length: int = HEADER.unpack_from(said, _SECRET)[1]
    return _SECRET + HEADER.size + min(length, LARGEST_REPORT)


def kill_all(pid: int) -> int:
    """Kill and reap all there is in the namespace but PID 1, us; return how the child `pid` ended.

    The kernel kills all at once, so that no fork slips through; and who loses its parent becomes our child, so that
    no children means nobody.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    ended = -signal.SIGKILL
    with contextlib.suppress(ChildProcessError):
        while True:
            one, status = os.waitpid(-1, 0)
            if one == pid:
                ended = os.waitstatus_to_exitcode(status)
    return ended


def emptied(folder: str) -> bool:
    """Empty a folder; whether it worked, and was worth while."""
    try:
        os.chmod(folder, 0o700)
        names = os.listdir(folder)
        if not names:
            return True
        room = os.statvfs(folder)
        if room.f_files - room.f_ffree > _MOST_FILES:
            return False
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    except (OSError, RecursionError):
        return False
    return True
