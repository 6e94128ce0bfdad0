"""A warm worker of trusted code: imports the user's file and runs one job after the other in its own process.

    start.py worker JOB_FD VERDICT_FD PARENT_PID

See `channel` for what comes in and goes out. Started by path, clean environment, standard library only.
"""

import ctypes
import faulthandler
import json
import math
import os
import resource
import signal
import sys
from typing import NoReturn

from .channel import BEGIN, BROKEN, FAULT, LIMIT, READY, Channel, frame
from .program import Program, WrongResult, outcome, where

_KEPT_OUTPUT = 64 << 10  # bytes of output kept from one job to the next
_FILE_SIZE = 16 << 20  # bytes a file may grow to, output included
_OPEN_FILES = 256
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def limit(what: int, most: float, *, for_good: bool = True) -> None:
    """Set a limit, within the one that holds already; it can be raised again unless it is `for_good`."""
    hard = resource.getrlimit(what)[1]
    value = math.ceil(most) if hard == resource.RLIM_INFINITY else min(math.ceil(most), hard)
    resource.setrlimit(what, (value, value if for_good else hard))


def limit_process(memory_bytes: int) -> None:
    """Set the limits that hold for the life of the process."""
    limit(resource.RLIMIT_AS, memory_bytes)
    limit(resource.RLIMIT_FSIZE, _FILE_SIZE)
    limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    limit(resource.RLIMIT_CORE, 0)


def limit_job(time_limit_s: float) -> None:
    """Grant one job its CPU seconds: a backstop for a parent that is stopped."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = used.ru_utime + used.ru_stime + time_limit_s * (os.cpu_count() or 1) + 2
    limit(resource.RLIMIT_CPU, allowed, for_good=False)


def cpu_limit(time_limit_s: float) -> tuple[int, int]:
    """The CPU seconds, soft and hard, of a process that runs one job and has used none yet."""
    most = math.ceil(time_limit_s * (os.cpu_count() or 1) + 2)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    return (most, hard) if hard == resource.RLIM_INFINITY else (min(most, hard), hard)


def imported(channel: Channel, path: str, source: str) -> Program:
    """Import the user's file and say READY, or say BROKEN with the line at fault and end the process."""
    try:
        program = Program(path, source)
    except WrongResult as error:
        why = str(error)
    except BaseException as error:
        why = f"{where(path, error)}: importing the file raised {type(error).__name__}: {error!s:.300}"
    else:
        channel.send(frame(READY))
        return program
    channel.send(frame(BROKEN, body=json.dumps(why).encode()))
    sys.exit(0)


def serve(channel: Channel, program: Program, time_limit_s: float) -> NoReturn:
    """Run jobs in order until the parent closes the channel; end after a memory fault, which leaves a poor heap."""
    me, out = os.getpid(), b""
    while True:
        said, length, job = channel.header()
        if said == LIMIT:
            time_limit_s = json.loads(channel.body(length))
            if channel.empty:
                channel.send(out)
                out = b""
            continue
        limit_job(time_limit_s)
        if os.fstat(1).st_size > _KEPT_OUTPUT:
            os.ftruncate(1, 0)
        channel.send(out + frame(BEGIN, job))
        kind, report = outcome(program, channel.body(length))
        if os.getpid() != me:
            os._exit(0)  # a fork that the function left behind must not answer
        out = frame(kind, job, report)
        if kind == FAULT and json.loads(report)["blame"] == "memory":
            channel.send(out)
            os._exit(0)
        if channel.empty:
            channel.send(out)
            out = b""


def main(arguments: list[str]) -> None:
    """Start up, import the user's file, and serve."""
    jobs, verdicts, parent = map(int, arguments)
    die_with(parent)
    faulthandler.enable()  # the parent ends a hanging job by SIGABRT: its stack is the best explanation
    channel = Channel(jobs, verdicts)
    _, length, _ = channel.header()
    init = json.loads(channel.body(length))
    sys.path += init["python_path"]
    limit_process(init["memory_bytes"])
    serve(channel, imported(channel, init["path"], init["source"]), init["time_limit_s"])
