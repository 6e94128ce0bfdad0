"""Runs the user's `reward_fn` in a process of its own: started by path, clean environment, standard library only.

    worker.py JOB_FD VERDICT_FD PARENT_PID

Both channels carry frames: kind (1 byte), body length (4), job id (8), then the body as JSON. In come INIT, once, JOB,
and LIMIT, a new time limit for the jobs behind it. Out go READY or BROKEN, once, and for every job BEGIN, before its
body is even parsed, then SCORED or FAULT; MORE says that a part of a long body was taken. Whatever dies is thus to
blame on the one job that has begun.
"""

import ctypes
import faulthandler
import json
import linecache
import math
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import NoReturn

HEADER = struct.Struct("<cIQ")
INIT, JOB, LIMIT = b"I", b"J", b"L"
READY, BROKEN, BEGIN, MORE, SCORED, FAULT = b"R", b"X", b"B", b"M", b"S", b"F"

TAIL = 2000  # characters of a traceback or of output that travel
_KEPT_OUTPUT = 64 << 10  # bytes of output kept from one job to the next
_FILE_SIZE = 16 << 20  # bytes a file may grow to, output included
_OPEN_FILES = 256
_PR_SET_PDEATHSIG = 1


class WrongResult(Exception):
    """The function returned something that is not a reward."""


def frame(kind: bytes, job: int = 0, body: bytes = b"") -> bytes:
    """Encode one frame."""
    return HEADER.pack(kind, len(body), job) + body


def named_rewards(result: object) -> dict[str, float]:
    """Return the rewards by objective: a dict as it is, a bare number as "reward".

    Raises:
        WrongResult: not a number, not finite, or an unusable name.
    """
    items: dict[object, object] = result if isinstance(result, dict) else {"reward": result}
    if not items:
        raise WrongResult("reward_fn returned an empty dict - name at least one objective")
    rewards: dict[str, float] = {}
    for name, value in items.items():
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise WrongResult(f"reward_fn returned the objective name {name!r:.80} - use a text of 1 to 64 characters")
        to_float = getattr(type(value), "__float__", None)
        if to_float is None:
            raise WrongResult(f"reward_fn returned {value!r:.80} for {name!r} - expected a number or a dict of numbers")
        rewards[name] = float(to_float(value))
        if not math.isfinite(rewards[name]):
            raise WrongResult(f"reward_fn returned {rewards[name]} for {name!r} - a reward must be finite")
    return rewards


class Channel:
    """Blocking frames over two file descriptors, which no program started by the user's code inherits."""

    def __init__(self, jobs: int, verdicts: int) -> None:
        self._jobs, self._verdicts = jobs, verdicts
        self._buffer = bytearray()
        for fd in (jobs, verdicts):
            os.set_inheritable(fd, False)

    @property
    def empty(self) -> bool:
        """Whether reading the next header could block."""
        return len(self._buffer) < HEADER.size

    def header(self) -> tuple[bytes, int, int]:
        """Wait for a header: kind, body length, job id. Ends the process when the parent has closed the channel."""
        self._fill(HEADER.size)
        kind, length, job = HEADER.unpack(self._take(HEADER.size))
        return kind, length, job

    def body(self, length: int) -> bytes:
        """Wait for a body, telling the parent whenever there is room for more of it."""
        while len(self._buffer) < length:
            self.send(frame(MORE))
            self._fill(len(self._buffer) + 1)
        return self._take(length)

    def send(self, data: bytes) -> None:
        """Write all of `data`."""
        while data:
            data = data[os.write(self._verdicts, data) :]

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            chunk = os.read(self._jobs, 1 << 16)
            if not chunk:
                sys.exit(0)
            self._buffer += chunk

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class Program:
    """The user's file, imported once, and its `reward_fn`."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        module = ModuleType("midflight_reward")
        module.__file__ = path
        sys.modules[module.__name__] = module
        exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - importing the user's file is the purpose
        function = getattr(module, "reward_fn", None)
        if not callable(function):
            raise WrongResult(f"{path}:1: no function reward_fn(messages, answer) in this file")
        self._function: Callable[[object, object], object] = function
        self._run: Callable[[object], object] | None = None

    def call(self, body: bytes) -> object:
        """Call `reward_fn`, and run it to its end if it is an `async def`."""
        job = json.loads(body)
        result = self._function(job["messages"], job["answer"])
        if hasattr(result, "__await__"):
            if self._run is None:
                import asyncio  # costs 40 ms, and few reward functions need it

                self._run = asyncio.Runner().run  # type: ignore[assignment]
            result = self._run(result)  # type: ignore[misc]
        return result

    def tail(self, error: BaseException) -> str:
        """Format an exception from the user's file downwards."""
        trace: TracebackType | None = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != self.path:
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace))[-TAIL:]


def where(path: str, error: BaseException) -> str:
    """Return file:line of the deepest place in the user's file that an import error passed through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return f"{path}:{lines[-1] if lines else 1}"


def outcome(program: Program, body: bytes) -> tuple[bytes, dict[str, object]]:
    """Run one job: SCORED with {rewards, seconds} or FAULT with {blame, why, tail, seconds}."""
    began = time.perf_counter()
    blame, tail = "raised", ""
    try:
        rewards = named_rewards(program.call(body))
        return SCORED, {"rewards": rewards, "seconds": time.perf_counter() - began}
    except WrongResult as error:
        blame, why = "returned", str(error)
    except MemoryError as error:
        traceback.clear_frames(error.__traceback__)  # frees what the function held, so that the report fits
        blame, why, tail = "memory", "reward_fn ran out of memory", program.tail(error)
    except BaseException as error:
        why, tail = f"reward_fn raised {type(error).__name__}: {error!s:.300}", program.tail(error)
    return FAULT, {"blame": blame, "why": why, "tail": tail, "seconds": time.perf_counter() - began}


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
    """Grant one job its CPU seconds (a backstop for a parent that is stopped) and drop old output."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = used.ru_utime + used.ru_stime + time_limit_s * (os.cpu_count() or 1) + 2
    limit(resource.RLIMIT_CPU, allowed, for_good=False)
    if os.fstat(1).st_size > _KEPT_OUTPUT:
        os.ftruncate(1, 0)


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
        channel.send(out + frame(BEGIN, job))
        kind, report = outcome(program, channel.body(length))
        if os.getpid() != me:
            os._exit(0)  # a fork that the function left behind must not answer
        out = frame(kind, job, json.dumps(report).encode())
        if report.get("blame") == "memory":
            channel.send(out)
            os._exit(0)
        if channel.empty:
            channel.send(out)
            out = b""


def main() -> None:
    """Start up, import the user's file, and serve."""
    jobs, verdicts, parent = map(int, sys.argv[1:])
    die_with(parent)
    faulthandler.enable()  # the parent ends a hanging job by SIGABRT: its stack is the best explanation
    channel = Channel(jobs, verdicts)
    _, length, _ = channel.header()
    init = json.loads(channel.body(length))
    sys.path += init["python_path"]
    limit_process(init["memory_bytes"])
    try:
        program = Program(init["path"], init["source"])
    except WrongResult as error:
        channel.send(frame(BROKEN, body=json.dumps(str(error)).encode()))
    except BaseException as error:
        why = f"{where(init['path'], error)}: importing the file raised {type(error).__name__}: {error!s:.300}"
        channel.send(frame(BROKEN, body=json.dumps(why).encode()))
    else:
        channel.send(frame(READY))
        serve(channel, program, init["time_limit_s"])


if __name__ == "__main__":
    main()
