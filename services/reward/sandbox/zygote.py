"""PID 1 of a sandbox: seals itself, imports the user's file, and forks one process for every call.

    start.py zygote JOB_FD VERDICT_FD [READABLE PATHS] [without-proc]

The same frames as `worker`, but the channel is this process's alone: a call has a pipe of its own, on which only bytes
behind a secret of this call count, and what it prints goes to a file in memory. When a call has ended, everything in
the namespace but this process is killed and reaped, and its folders set back (`places`); a folder that resists ends
this process, and with it the file system it is on.

A call costs what its fork costs: a copy of every page that is written after it. So whatever can be done for all calls
is done before, little is imported, and our part of a call has run before (its code is specialized by then, and writes
to itself no more). Standard library only.
"""

import contextlib
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from typing import NoReturn

from . import landlock, libc, seccomp
from .channel import ACTED, BEGIN, FAULT, HEADER, LARGEST_REPORT, LIMIT, MORE, SCORED, TAIL, Channel, frame
from .places import Places
from .program import Program, outcome, rehearse
from .worker import cpu_limit, imported, limit, limit_process

TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 (file systems of the sandbox's own)
_HOME, _AT_IMPORT = TMP + "/call", TMP + "/import"
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_PROCESSES = 64  # at a time, and two more per core for the threads of numeric libraries
_ABORT_GRACE = 0.2  # seconds between SIGABRT, which prints a hanging call's stack, and SIGKILL
_SOON_S = 0.05  # most calls are over by then, and their end need not be listened for
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
    rehearse()
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
        self._channel, self._program = channel, program
        self._complaints = os.dup(2)
        _new_output()
        self._ears = select.poll()
        self._ears.register(channel.jobs, 0)  # hang-up alone
        self._grant(time_limit_s)
        _at_home()
        self._places = Places(own=(_HOME, SHM), kept=(TMP, _AT_IMPORT))
        if landlock.version():  # from here on, what the import wrote is not to be written
            landlock.restrict(landlock.rules(write=[_HOME, SHM, *_DEVICES], only_writing=True))
        gc.collect()
        gc.freeze()  # a collection in a call would copy every page of what was imported

    def _grant(self, time_limit_s: float) -> None:
        self._time_limit, self._cpu = time_limit_s, cpu_limit(time_limit_s)
        self._soon_ms = min(_SOON_S, time_limit_s) * 1000

    def serve(self) -> NoReturn:
        """Run jobs in order until the parent closes the channel or a folder cannot be set back."""
        try:
            self._serve()
        except Exception:
            os.dup2(self._complaints, 2)  # the calls' output is not where the parent looks
            raise

    def _serve(self) -> NoReturn:
        told = b""
        while True:
            said, length, job = self._channel.header()
            if said == LIMIT:
                self._grant(json.loads(self._channel.body(length)))
            else:
                self._channel.send(told + frame(BEGIN, job))
                kind, report = self._call(self._channel.body(length))
                told = frame(kind, job, report)
                if not self._places.restored():
                    self._channel.send(told)
                    os._exit(0)
                _new_output()
            if told and not self._channel.waiting():  # else it goes with the next word: one message a call is enough
                self._channel.send(told)
                told = b""

    def _call(self, body: bytes) -> tuple[bytes, bytes]:
        """Run one job in a process of its own; nothing of it is left afterwards."""
        self._places.begin()
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        secret = os.urandom(_SECRET)
        self._ears.register(ours, select.POLLIN)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            self._in_call(theirs, secret, body)
        os.close(theirs)  # from here to the end of the call, every page that is written has to be copied: do little
        try:
            said, overdue = self._listen(ours, pid, began)
            if overdue:
                _abort(pid)
        finally:
            status = kill_all(pid)
            self._deaf_to(ours)
            os.close(ours)
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
            faulthandler.enable(2)  # by its number: to ask sys.stderr for it copies 30 pages
            resource.setrlimit(resource.RLIMIT_CPU, self._cpu)
            kind, report = outcome(self._program, body)
            if os.getpid() == me:  # a fork that the function left behind must not answer
                said = secret + frame(kind, 0, report)
                while said:
                    said = said[os.write(verdict, said) :]
        finally:
            os._exit(0)

    def _listen(self, verdict: int, pid: int, began: float) -> tuple[bytes, bool]:
        """Gather what the call says until it ends, is complete, too long, or late (True); end with the parent."""
        said, death = b"", -1
        ready = self._ears.poll(self._soon_ms)
        try:
            while True:
                heard = [fd for fd, _ in ready]
                if self._channel.jobs in heard:
                    os._exit(0)
                chunk = _read(verdict) if verdict in heard else None
                said += chunk or b""
                if len(said) >= _complete(said) or (death in heard and not chunk):
                    return said, False
                if chunk == b"":
                    self._deaf_to(verdict)
                if death < 0:  # it takes its time, so there is time for this
                    death = os.pidfd_open(pid)
                    self._ears.register(death, select.POLLIN)
                ready = self._ears.poll(max(0.0, began + self._time_limit - time.monotonic()) * 1000)
                if not ready:
                    return said, True
        finally:
            if death >= 0:
                self._deaf_to(death)
                os.close(death)

    def _deaf_to(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._ears.unregister(fd)

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
        size = os.fstat(1).st_size
        tail = os.pread(1, TAIL, max(0, size - TAIL)).decode(errors="replace").strip()
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


def _abort(pid: int) -> None:
    """Have a call that hangs print its stack, if it still can."""
    death = os.pidfd_open(pid)
    os.kill(pid, signal.SIGABRT)
    select.select([death], [], [], _ABORT_GRACE)
    os.close(death)


def kill_all(pid: int) -> int:
    """Kill and reap all there is in the namespace but PID 1, us; return how the child `pid` ended.

    The kernel kills all at once, so that no fork slips through; and who loses its parent becomes our child, so that
    no children means nobody.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    ended = -int(signal.SIGKILL)
    try:
        while True:
            one, status = os.waitpid(-1, 0)
            if one == pid:
                ended = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        return ended


def _new_output() -> None:
    """Have what is printed from here on go to a new file in memory."""
    output = os.memfd_create("output")
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _at_home() -> None:
    """Be where calls are; what is found once and kept, such as the folder of temporary files, is found again there."""
    os.chdir(_HOME)
    os.environ["HOME"] = _HOME
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None
