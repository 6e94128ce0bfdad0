"""Following a run from outside: late, with lost publications, over a kernel's restart, and to the run's end."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import pytest
import zmq

from midflight.kernel.cli.main import main
from midflight.kernel.client import Client, Unreachable
from midflight.kernel.journal import Journal
from midflight.kernel.node import Letter, Node, handles
from midflight.kernel.rundir import RunDir
from midflight.kernel.stream import Stream
from midflight.kernel.watching import follow
from midflight.messages.base import Scalar
from midflight.messages.control import Done, RunStop, Status, StatusGet
from midflight.messages.events import EventsGet
from midflight.messages.sockets import Endpoint
from midflight.messages.wire import reject_frame

DEADLINE_S = 30.0


class Teller(Node):
    """The kernel as far as events go."""

    SERVES = ("ctl", "ev")

    def __init__(self, bus: "Served", journal: Journal) -> None:
        super().__init__("kernel#1", bus)
        self.stream = Stream(self.mail, journal)
        self.asked = Flag()
        self.state = "loading"
        """Of the only service."""

    @handles(EventsGet)
    def _on_events_get(self, message: EventsGet, letter: Letter) -> None:
        self.stream.answer(message, letter)
        self.asked.set()

    @handles(StatusGet)
    def _on_status_get(self, message: StatusGet, letter: Letter) -> None:
        numbers = {"generation": 1, "pid": 1, "up_s": 1.0, "seen_s": 0.0, "restarts": 0, "progress": 0}
        service = {"name": "learner", "kind": "learner", "state": self.state, "waits": [], **numbers}
        letter.reply(Status(**{**Status.EXAMPLE, "seq": self.stream.newest, "services": [service]}))

    @handles(RunStop)
    def _on_run_stop(self, message: RunStop, letter: Letter) -> None:
        letter.reply(Done(detail=message.mode))
        self.asked.set()


class Served:
    """A teller on real sockets in its own thread; `deaf` publications are lost."""

    def __init__(self, run: "Run") -> None:
        self.deaf = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ports = {"ctl": self._endpoint(run, "ctl"), "ev": self._endpoint(run, "ev")}
        self.teller = Teller(self, run.journal)
        self.teller.stream.id, self.teller.stream.log = run.stream_id, run.log
        run.stream_id, run.log = self.teller.stream.id, self.teller.stream.log
        self._todo: deque[Callable[[], object]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._stop = Flag()
        self._thread = Thread(target=self._loop)
        self._thread.start()

    def _endpoint(self, run: "Run", name: str) -> Endpoint:
        url = run.endpoints[name]
        return Endpoint(self._context, "router" if name == "ctl" else "xpub", url, "kernel#1" if name == "ctl" else "")

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """Through the socket, unless it is lost."""
        return (port == "ev" and self.deaf) or self._ports[port].send(frames, to)

    def emit(self, *numbers: int, lost: bool = False) -> None:
        """The metrics of a step for each number; done when it returns."""

        def do() -> None:
            self.deaf = lost
            for number in numbers:
                self.teller.stream.emit("learner#1", "metrics", {"n": number}, step=number)
                self.teller.stream.flush()
            self.deaf = False

        self.do(do)

    def tell(self, topic: str, **body: Scalar) -> None:
        """An event of the kernel's."""

        def do() -> None:
            self.teller.stream.emit("kernel", topic, body)
            self.teller.stream.flush()

        self.do(do)

    def do(self, what: Callable[[], object]) -> None:
        """In the kernel's thread; done when it returns."""

        def do() -> None:
            what()
            done.set()

        done = Flag()
        self._todo.append(do)
        self._wake.send(b"!")
        assert done.wait(DEADLINE_S)

    def close(self) -> None:
        """The kernel dies."""
        self._stop.set()
        self._wake.send(b"!")
        self._thread.join()
        for endpoint in self._ports.values():
            endpoint.socket.close(linger=1000)
        self._context.term()
        self._wake.close()
        self._woken.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        by_socket = {endpoint.socket: port for port, endpoint in self._ports.items()}
        for source in (*by_socket, self._woken.fileno()):
            poller.register(source, zmq.POLLIN)
        while not self._stop.is_set():
            for source, _ in poller.poll():
                if source in by_socket:
                    for incoming in self._ports[by_socket[source]].drain():
                        if by_socket[source] == "ctl":
                            self.teller.deliver("ctl", incoming)
                else:
                    self._woken.recv(64)
            while self._todo:
                self._todo.popleft()()


class Run:
    """A run directory with a warden that does nothing, and a kernel."""

    def __init__(self, path: Path) -> None:
        self.folder = RunDir(path)
        self.folder.create().hold()
        self.endpoints = self.folder.endpoints()
        (path / "run.json").write_text(json.dumps({"endpoints": self.endpoints}))
        self.warden = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.folder.lock.hand_over(self.warden.pid)
        self.journal = Journal(self.folder.journal, dict)
        self.stream_id, self.log = "51c3", Stream(None, self.journal).log  # type: ignore[arg-type]
        self.kernel = Served(self)

    def end(self) -> None:
        """Everything is over."""
        self.kernel.close()
        self.warden.communicate(b"\n")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A living run with five events behind it."""
    run = Run(tmp_path)
    run.kernel.emit(*range(1, 6))
    yield run
    if run.warden.poll() is None:
        run.end()
    run.journal.close()


def test_past_live_and_end(run: Run, tmp_path: Path) -> None:
    """What was comes first, then what happens, then it ends with the run: each event once and in order."""
    seen = []
    with Client(tmp_path) as client:
        for event in follow(client, deadline_s=DEADLINE_S):
            seen.append((event.seq, event.step, event.body["n"]))
            if event.seq == 5:
                run.kernel.emit(6, 7)
            if event.seq == 7:
                run.kernel.emit(8, lost=True)
                run.end()
    assert seen == [(n, n, n) for n in range(1, 9)]


def test_after_a_number(run: Run, tmp_path: Path) -> None:
    """Older events are left out; a second question to the same client starts afresh."""
    with Client(tmp_path) as client:
        assert next(follow(client, 3, DEADLINE_S)).seq == 4
        assert [event.seq for event in islice(follow(client, 0, DEADLINE_S), 5)] == [1, 2, 3, 4, 5]


def test_lost_publications_are_asked_for(run: Run, tmp_path: Path) -> None:
    """A hole before a live event is filled; so is the loss of the newest one, without another event to tell of it."""
    with Client(tmp_path) as client:
        events = follow(client, 5, DEADLINE_S)
        run.kernel.emit(6)
        assert next(events).seq == 6
        run.kernel.emit(7, 8, lost=True)
        run.kernel.emit(9)
        assert [next(events).seq for _ in range(3)] == [7, 8, 9]
        run.kernel.emit(10, lost=True)
        assert next(events).seq == 10


def test_many_pages(run: Run, tmp_path: Path) -> None:
    """A long past comes page by page."""
    run.kernel.emit(*range(6, 1300))
    with Client(tmp_path) as client:
        events = follow(client, 0, DEADLINE_S)
        assert [next(events).seq for _ in range(1299)] == list(range(1, 1300))


def test_a_restarted_kernel(run: Run, tmp_path: Path) -> None:
    """The kernel goes and comes back: nothing is missed."""
    with Client(tmp_path) as client:
        events = follow(client, 4, DEADLINE_S)
        assert next(events).seq == 5
        run.kernel.close()
        run.kernel = Served(run)
        run.kernel.emit(6)
        assert next(events).seq == 6


def test_deadline(run: Run, tmp_path: Path) -> None:
    """It passes as a TimeoutError, after what was there."""
    with Client(tmp_path) as client:
        events = follow(client, 4, 0.3)
        assert next(events).seq == 5
        with pytest.raises(TimeoutError):
            next(events)


def test_nobody_answers(run: Run, tmp_path: Path) -> None:
    """A kernel that is not there is waited for, as long as the deadline says; no descriptor is left behind."""
    run.kernel.close()
    with Client(tmp_path) as client:
        events = follow(client, 4, 1.5)
        with pytest.raises(TimeoutError):
            next(events)
        kinds = [os.readlink(file.path) for file in os.scandir("/proc/self/fd") if os.path.islink(file.path)]
        assert "anon_inode:[pidfd]" not in kinds
        run.kernel = Served(run)
        assert next(follow(client, 4, DEADLINE_S)).seq == 5


def test_another_protocol(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is no silence: it is told at once."""
    run.kernel.close()
    monkeypatch.setattr(
        Teller, "deliver", lambda self, port, incoming: self.bus.send(port, [reject_frame()], incoming.sender)
    )
    run.kernel = Served(run)
    with Client(tmp_path) as client, pytest.raises(Unreachable):
        next(follow(client, 0, DEADLINE_S))


def test_a_run_that_is_over(run: Run, tmp_path: Path) -> None:
    """Its journal tells."""
    run.end()
    with Client(tmp_path) as client:
        assert [event.seq for event in follow(client, 2)] == [3, 4, 5]


class Waiting:
    """`midflight wait`, or another verb, in a thread of its own, which has asked the kernel when this is made."""

    def __init__(self, run: Run, *arguments: str) -> None:
        self.codes: list[int] = []
        words = [arguments[0], "--run", str(run.folder.path), *arguments[1:]]
        run.kernel.teller.asked.clear()
        self._thread = Thread(target=lambda: self.codes.append(main(words)))
        self._thread.start()
        assert run.kernel.teller.asked.wait(DEADLINE_S)

    def code(self) -> int:
        """Its exit code."""
        self._thread.join(DEADLINE_S)
        return self.codes[0]


def test_wait_for_a_step(run: Run) -> None:
    """One to come, one that is past, one that never comes because the run is over; and a limit."""
    where = ("--run", str(run.folder.path))
    waiting = Waiting(run, "wait", "--for", "step=7")
    run.kernel.emit(6)
    run.kernel.emit(7)
    assert waiting.code() == 0
    assert main(["wait", "--for", "step=5", *where]) == 0
    assert main(["wait", "--for", "step=9", "--timeout", "0.2", *where]) == 5
    waiting = Waiting(run, "wait", "--for", "step=9")
    run.end()
    assert waiting.code() == 1
    assert main(["wait", "--for", "step=7", *where]) == 0
    assert main(["wait", "--for", "step=8", *where]) == 1
    assert main(["wait", "--for", "steps", *where]) == 2


def test_wait_until_it_is_ready(run: Run) -> None:
    """Asked for again with every change of a service, and only then believed."""
    run.kernel.tell("service.state", name="learner", state="loading")
    waiting = Waiting(run, "wait", "--for", "ready")
    run.kernel.tell("service.state", name="learner", state="loading")
    assert not waiting.codes
    run.kernel.teller.state = "ready"
    run.kernel.tell("service.state", name="learner", state="ready")
    assert waiting.code() == 0
    assert main(["wait", "--for", "ready", "--run", str(run.folder.path)]) == 0


@pytest.mark.parametrize(
    ("mode", "code", "done", "drained"), [("drain", 0, 0, 0), ("stop", 0, 0, 1), ("drain", 1, 1, 1), ("kill", 1, 1, 1)]
)
def test_wait_for_the_end(run: Run, mode: str, code: int, done: int, drained: int) -> None:
    """How it ended tells; what a former part of a resumed run came to does not count."""
    where = ("--run", str(run.folder.path))
    run.kernel.tell("run.state", state="stopping", mode="drain")
    run.kernel.tell("run.state", state="over", code=0)
    run.kernel.tell("kernel.boot", generation=1)
    waiting = Waiting(run, "wait", "--for", "done")
    run.kernel.tell("run.state", state="stopping", mode=mode)
    run.kernel.tell("run.state", state="over", code=code)
    run.end()
    assert waiting.code() == done
    assert main(["wait", "--for", "done", *where]) == done
    assert main(["wait", "--for", "drained", *where]) == drained


@pytest.mark.parametrize(
    ("asked", "mode", "code", "exit_code", "told"),
    [
        ((), "drain", 0, 0, "ended (drain)"),
        ((), "drain", 1, 1, "the run is over, but failed: the disk is full"),
        ((), "stop", 0, 1, "the run is over, but was told to stop: the disk is full"),
        (("--now",), "stop", 0, 0, "ended (stop)"),
        (("--now",), "stop", 1, 1, "failed: the disk is full"),
        (("--kill",), "kill", 1, 0, "ended (kill)"),
        ((), "", None, 1, "failed: it was killed"),
    ],
)
def test_down_tells_what_the_run_came_to(
    run: Run,
    asked: tuple[str, ...],
    mode: str,
    code: int | None,
    exit_code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not what was asked for: a drain may fail."""
    waiting = Waiting(run, "down", *asked)
    if code is not None:
        run.kernel.tell("run.state", state="over", mode=mode, code=code, why="the disk is full")
    run.end()
    assert waiting.code() == exit_code
    assert told in "".join(capsys.readouterr())


def test_a_killed_run_did_not_end_well(run: Run) -> None:
    """Its former part did."""
    run.kernel.tell("run.state", state="over", code=0)
    run.kernel.tell("kernel.boot", generation=1)
    run.end()
    assert main(["wait", "--for", "done", "--run", str(run.folder.path)]) == 1


def test_metrics(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """The newest lines, then those to come until the run is over; a name that is unknown is answered by the known."""
    where = ("--run", str(run.folder.path))
    waiting = Waiting(run, "metrics", "n", "--follow", "--last", "2")
    run.kernel.emit(6)
    run.kernel.tell("note", n=3)
    run.end()
    assert waiting.code() == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert lines == [["step", "n"], ["4", "4"], ["5", "5"], ["6", "6"]]
    assert main(["metrics", "--last", "0", "--json", *where]) == 0
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["step"], row["values"]) for row in told] == [(n, {"n": n}) for n in range(1, 7)]
    assert main(["metrics", "m*", *where]) == 1
    assert "there are: n" in capfd.readouterr().err
