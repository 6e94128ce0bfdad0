"""The warden: owns every process of a run and does nothing else. Standard library only, no thread, no ZeroMQ.

    python -P -m midflight.kernel.warden [--run-id ID] [--watchdog S] [--start-grace S] [--grace S]
                                         RUN_DIR -- KERNEL_ARGV...

Takes   JSON packets on RUN_DIR/warden.sock (AF_UNIX SOCK_SEQPACKET, 0600), from the kernel it started, nobody else.
        Each has "op" and "id"; the answer has the same id:
          spawn {name, generation, argv, env?, memory_bytes?, nofile?, beside?}   -> spawned {name, generation, pid}
                The same (name, generation) again is the same process; a generation never starts twice, nor below the
                newest. While another generation of the name lives, only with beside: true (a hot swap).
          kill  {name, generation, signal}    -> done.  SIGKILL goes to the process group, any other to its leader.
          list  {}                            -> listing {children: [{name, generation, pid, started}], exits: [exit]}
          ping  {seen}                        no answer. Proof of life; exits with serial <= seen are forgotten.
          stop  {grace_s, code?}              -> done.  Ends the run; code (default 0) becomes the exit code.
        or refused {why}, and then nothing was done.
Sends   exit {serial, name, generation, pid, code, signal, oom, out} when a child ended: code or signal is null, oom
        is a guess, out is the last 20 lines (at most 4 KiB) of its output. Kept until seen: the newest 256, the
        newest 8 with out. stopping {grace_s} when the run ends.
Stores  RUN_DIR/warden.json {pid, started}; logs/warden.out, its own lines; logs/NAME.GENERATION.out, stdout and
        stderr of each child (the newest 20 generations). A flock on RUN_DIR itself keeps a second warden out.
Keeps   one kernel alive: started again when it ends with code != 0, killed when it has not pinged for --watchdog
        seconds (--start-grace before the first). Time in which the warden itself was stopped does not count.
        A kernel that ends with 0 ends the run.
Dies    SIGTERM, SIGINT, SIGHUP: children get SIGTERM in reverse start order and, --grace seconds later, SIGKILL; the
        kernel comes last. SIGTERM or SIGINT again: SIGKILL now. No descendant and no process marked with the run id
        is left. SIGKILL: every child that called `bootstrap_from_environment` dies too; the next warden of the same
        run id kills whatever else bears its mark.
        Exit codes: 0 run over; 2 usage; 69 not Linux, or the directory is unusable or taken; 70 the kernel died more
        than 20 times in 10 s, or as often without a ping; 71 a defect here, or something survived SIGKILL; else the
        code of `stop`. The last lines of logs/warden.out give the reason.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from .children import Child, Children, Ended, private
from .kernel_watch import KernelWatch
from .process import become_subreaper, kill_marked, read_stat, require_linux
from .warden_socket import Message, Refusal, WardenSocket, field

KERNEL = "kernel"
EXIT_UNAVAILABLE, EXIT_KERNEL_FAILED, EXIT_DEFECT = 69, 70, 71
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
TICK_S = 0.25
STOPPED_S = 1.0
"""A turn that took longer than this means that the warden did not run, and the kernel gets the time back."""
KILL_WAIT_S = 3.0
KEPT_EXITS, KEPT_TAILS = 256, 8


class Warden:
    """One run's processes; `run` returns the exit code. All state lives here and is lost with the process."""

    def __init__(
        self, run_dir: Path, run_id: str, kernel_argv: Sequence[str], watch: KernelWatch, grace_s: float
    ) -> None:
        self._run_dir, self._run_id, self._kernel_argv = run_dir, run_id, list(kernel_argv)
        self._watch, self._grace_s = watch, grace_s
        self._children = Children(run_dir, run_id)
        self._kernel: Child | None = None
        self._kernel_due = 0.0
        self._exits: deque[Message] = deque(maxlen=KEPT_EXITS)
        self._serial = 0
        self._ending: tuple[int, float] | None = None
        self._hurry = False
        self._last_turn = time.monotonic()
        self._selector = selectors.DefaultSelector()
        operations = {"spawn": self._spawn, "kill": self._kill, "list": self._list, "stop": self._stop}
        self._socket = WardenSocket(self._selector, {**operations, "ping": self._ping}, self._log)

    def run(self) -> int:
        """Own the run from its first kernel to its last process. Raises OSError if the directory is unusable."""
        self._open()
        try:
            left = kill_marked(self._run_id)
            self._log(f"started; killed {len(left)} processes left by an earlier warden" if left else "started")
            while self._ending is None:
                self._turn(self._tend_kernel())
            self._ask_all(self._ending[1])
        except Exception:
            self._log(f"a defect of the warden ends the run: {traceback.format_exc()}")
            self._ending = (EXIT_DEFECT, 0.0)
        code = self._ending[0]
        if survivors := self._kill_everything():
            self._log(f"processes {survivors} survived SIGKILL; /proc/PID/stack may say in which driver they hang")
            code = EXIT_DEFECT
        self._socket.drop()
        for name in ("warden.sock", "warden.json"):
            (self._run_dir / name).unlink(missing_ok=True)
        self._log(f"ended with exit code {code}")
        return code

    # Files, socket and signals.

    def _open(self) -> None:
        self._directory = os.open(self._run_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, f"{self._run_dir} belongs to {_holder(self._run_dir)}") from None
        (self._run_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        become_subreaper()
        self._socket.open(self._run_dir, self._directory)
        identity = {"pid": os.getpid(), "started": read_stat(os.getpid()).started}
        fresh = self._run_dir / "warden.json.new"
        with open(fresh, "w", opener=private) as file:
            file.write(json.dumps(identity))
        fresh.replace(self._run_dir / "warden.json")
        self._catch_signals()

    def _catch_signals(self) -> None:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(read, selectors.EVENT_READ, lambda: os.read(read, 4096))
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # One ignored from the start means nohup or a background job, and stays ignored.
            if signum == signal.SIGTERM or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._ending is None:
            self._ending = (0, self._grace_s)
        elif signum != signal.SIGHUP:  # a closing terminal sends it twice by itself
            self._hurry = True

    def _log(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} warden[{os.getpid()}] {text}\n"
        with contextlib.suppress(OSError), open(self._run_dir / "logs" / "warden.out", "a", opener=private) as log:
            log.write(line)

    # One turn: packets, then deaths.

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(timeout_s, 0.0)):
            key.data()
        for ended in self._children.reap():
            self._log(f"{ended.child} ended with {ended.how()}")
            if ended.child is self._kernel:
                self._on_kernel_end(ended.code, ended.how())
            elif ended.child.name != KERNEL:
                self._on_end(ended)
        now = time.monotonic()
        if now - self._last_turn > STOPPED_S:
            self._watch.give_back(now - self._last_turn)
        self._last_turn = now

    def _on_end(self, ended: Ended) -> None:
        child, code = ended.child, ended.code
        self._serial += 1
        report: Message = {"op": "exit", "serial": self._serial, "name": child.name, "generation": child.generation}
        report |= {"pid": child.pid, "code": code if code >= 0 else None, "signal": -code if code < 0 else None}
        report |= {"oom": ended.oom, "out": ended.out}
        self._exits.append(report)
        if len(self._exits) > KEPT_TAILS:
            self._exits[-KEPT_TAILS - 1]["out"] = ""
        self._socket.send(report)

    # The kernel.

    def _tend_kernel(self) -> float:
        """Start it when due, kill it when hung; returns seconds until the next look."""
        now = time.monotonic()
        if self._kernel is not None:
            if self._watch.hung(now):
                self._log(f"{self._kernel} has not pinged in time: killed")
                self._kernel.signal(signal.SIGKILL)
                self._watch.started(now)
        elif now >= self._kernel_due:
            try:
                self._kernel = self._children.start(KERNEL, self._children.newest(KERNEL) + 1, self._kernel_argv, {})
                self._socket.allowed = self._kernel.pid
                self._watch.started(now)
            except (OSError, ValueError) as error:
                self._log(f"the kernel cannot be started: {error}")
                self._on_kernel_end(EXIT_DEFECT, f"a failed start: {error}")
        return TICK_S if self._kernel is not None else min(TICK_S, self._kernel_due - now)

    def _on_kernel_end(self, code: int, how: str) -> None:
        self._socket.drain()  # its last words may be `stop`
        self._kernel = self._socket.allowed = None
        self._socket.drop()
        if self._ending is not None:
            return
        now = time.monotonic()
        delay = None if code == 0 else self._watch.died(now, by_itself=code > 0)
        if code == 0:
            self._ending = (0, self._grace_s)
        elif delay is None:
            generation = self._children.newest(KERNEL)
            self._log(
                f"giving up: the kernel died {max(len(self._watch.deaths), len(self._watch.crashed))} times in a row, "
                f"at last with {how}; "
                f"see {self._run_dir}/logs/{KERNEL}.{generation}.out"
            )
            self._ending = (EXIT_KERNEL_FAILED, self._grace_s)
        else:
            self._kernel_due = now + delay

    # Requests.

    def _spawn(self, request: Message) -> Message:
        name, generation = field(request, "name", str), field(request, "generation", int)
        argv, env = field(request, "argv", list), field({"env": {}} | request, "env", dict)
        if not NAME.fullmatch(name) or name in (KERNEL, "warden"):
            raise Refusal(f"spawn: {name!r} is not a name for a service")
        if not argv or not all(isinstance(word, str) for word in (*argv, *env, *env.values())):
            raise Refusal(f"spawn {name}: argv must be a list and env a table of strings")
        for limit in ("memory_bytes", "nofile"):
            if request.get(limit) is not None:
                env[f"MIDFLIGHT_{limit.upper()}"] = str(field(request, limit, int))
        living = self._children.living(name)
        child = next((child for child in living if child.generation == generation), None)
        if child is None:
            self._check_spawn(name, generation, living, beside=request.get("beside") is True)
            try:
                child = self._children.start(name, generation, argv, env)
            except (OSError, ValueError) as error:
                raise Refusal(f"spawn {name}#{generation}: {error}") from error
            self._log(f"{child} started")
        return {"op": "spawned", "name": name, "generation": generation, "pid": child.pid}

    def _check_spawn(self, name: str, generation: int, living: list[Child], beside: bool) -> None:
        if self._ending is not None:
            raise Refusal(f"spawn {name}#{generation}: the run is ending")
        if generation <= (newest := self._children.newest(name)):
            raise Refusal(f"spawn {name}#{generation}: generations grow, from 1, and {newest} was the last")
        if living and not beside:
            raise Refusal(f"spawn {name}#{generation}: {living[-1]} lives; kill it first, or say beside")

    def _kill(self, request: Message) -> Message:
        name, generation = field(request, "name", str), field(request, "generation", int)
        for child in self._children.living(name):
            if child.generation == generation and child is not self._kernel:
                try:
                    child.signal(field(request, "signal", int))
                except OSError as error:
                    raise Refusal(f"kill {child}: {error}") from error
                return {"op": "done"}
        raise Refusal(f"kill: no {name}#{generation} lives")

    def _list(self, request: Message) -> Message:
        children = [
            {"name": child.name, "generation": child.generation, "pid": child.pid, "started": child.started}
            for child in self._children.living()
            if child.name != KERNEL
        ]
        return {"op": "listing", "children": children, "exits": list(self._exits)}

    def _ping(self, request: Message) -> None:
        seen = field(request, "seen", int)
        self._watch.pinged(time.monotonic())
        while self._exits and field(self._exits[0], "serial", int) <= seen:
            self._exits.popleft()

    def _stop(self, request: Message) -> Message:
        grace_s, code = request.get("grace_s"), field({"code": 0} | request, "code", int)
        if not isinstance(grace_s, int | float) or not 0 <= grace_s < math.inf or not 0 <= code < 256:
            raise Refusal("stop: grace_s is a number of seconds and code an exit code")
        if self._ending is None:
            self._ending = (code, float(grace_s))
        return {"op": "done"}

    # The end.

    def _ask_all(self, grace_s: float) -> None:
        """SIGTERM one after the other, newest first: half of the grace to wait for each, the rest to wait for all."""
        self._socket.send({"op": "stopping", "grace_s": grace_s})
        self._log(f"stopping, with {grace_s:g} s of grace")
        end = time.monotonic() + grace_s
        services = [child for child in reversed(self._children.living()) if child.name != KERNEL]
        for place, child in enumerate(services):
            now = time.monotonic()
            self._ask(child, now + (end - grace_s / 2 - now) / (len(services) - place))
        self._wait(services, end)
        for child in self._children.living():
            if child in services:
                self._log(f"{child} did not end in time: killed")
                child.signal(signal.SIGKILL)
        self._wait(services, time.monotonic() + KILL_WAIT_S)
        if self._kernel is not None:
            self._ask(self._kernel, time.monotonic() + min(grace_s, KILL_WAIT_S))

    def _ask(self, child: Child, deadline: float) -> None:
        if not self._hurry and child in self._children.living():
            child.signal(signal.SIGTERM)
            child.signal(signal.SIGCONT)  # a stopped process could not obey
            self._wait([child], deadline)

    def _wait(self, children: list[Child], deadline: float) -> None:
        while not self._hurry and any(child in children for child in self._children.living()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._turn(min(left, TICK_S))

    def _kill_everything(self) -> list[int]:
        """SIGKILL all that is left and wait for it; -> the pids that are still there after 3 s."""
        deadline = time.monotonic() + KILL_WAIT_S
        while (left := self._children.kill_everything()) and time.monotonic() < deadline:
            self._turn(TICK_S / 10)
        return left


def _holder(run_dir: Path) -> str:
    """Who keeps us out, in words; it may not have written its name yet."""
    try:
        pid = json.loads((run_dir / "warden.json").read_text())["pid"]
    except (OSError, ValueError, LookupError):
        return "another warden that is just starting"
    return f"the warden with process id {pid}; end that run first (kill {pid}) or choose another directory"


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="midflight.kernel.warden", usage="%(prog)s [options] RUN_DIR -- KERNEL_ARGV..."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--run-id", help="mark of the run's processes (default: a hash of the directory's path)")
    parser.add_argument("--watchdog", type=float, default=10.0, help="seconds of kernel silence (default 10)")
    parser.add_argument("--start-grace", type=float, default=30.0, help="seconds to a kernel's first ping (default 30)")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL (default 5)")
    options = parser.parse_args(argv[:split])
    if not argv[split + 1 :]:
        parser.error("after -- comes the command line of the kernel")
    run_dir = options.run_dir.absolute()
    run_id = options.run_id or hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:12]
    watch = KernelWatch(watchdog_s=options.watchdog, start_grace_s=options.start_grace)
    try:
        require_linux()
        return Warden(run_dir, run_id, argv[split + 1 :], watch, options.grace).run()
    except OSError as error:
        sys.stderr.write(f"warden: {error}\n")
        return EXIT_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
