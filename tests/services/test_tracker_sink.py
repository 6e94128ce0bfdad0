import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from midflight.services.tracker import MetricsLog, Record, SinkProcess
from midflight.services.tracker.jsonl import Batch
from midflight.services.tracker.sink import FLUSH_S, State, doorbell, follow


class ListSink:
    """A backend in memory that can be told to fail."""

    def __init__(self, steps_per_batch: int = 1) -> None:
        self.run_id, self.steps_per_batch = "backend-run", steps_per_batch
        self.batches: list[list[object]] = []
        self.finished = ""
        self.known: int | None = None
        self.failures = 0

    def taken(self) -> int | None:
        return self.known

    def accept(self, batch: Batch) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("backend is away")
        self.batches.append([record.get("step") for record in batch.records])

    def finish(self, status: str) -> None:
        self.finished = status

    @property
    def steps(self) -> list[object]:
        return [step for batch in self.batches for step in batch]


def _record(step: int) -> Record:
    return {"ts": 1.0, "source": "learner#1", "step": step, "values": {"reward": 1.0}}


def _script(*acts: Callable[[], None]) -> Callable[[float | None], bool]:
    """A doorbell that plays one act at each ring and then ends; it records nothing and never waits."""
    left = list(acts)

    def wait(seconds: float | None) -> bool:
        if not left:
            return False
        left.pop(0)()
        return True

    return wait


def test_rows_are_sent_once_in_batches_of_steps_and_the_rest_at_the_end(tmp_path: Path) -> None:
    """A batch goes out when enough steps are there, when it has waited long enough, and at the end."""
    log, state, sink = MetricsLog(tmp_path / "m"), tmp_path / "state", ListSink(steps_per_batch=3)
    now = 0.0

    def write(*steps: int) -> Callable[[], None]:
        def act() -> None:
            for step in steps:
                log.append(_record(step))

        return act

    def later() -> None:
        nonlocal now
        now += FLUSH_S

    follow(tmp_path / "m", state, sink, _script(write(1, 1), write(2, 3), write(4), later, write(5)), lambda: now)
    assert sink.batches == [[1, 1, 2, 3], [4], [5]]
    assert sink.finished == "killed"
    saved = replace(State.load(state), helpers=[])  # whatever else the tests' process has for children
    assert saved == State((tmp_path / "m").stat().st_size, "backend-run", "")


def test_a_refused_batch_is_sent_again_by_the_next_process(tmp_path: Path) -> None:
    """The offset moves only after the backend has taken a batch, so a failure loses nothing."""
    log, state, sink = MetricsLog(tmp_path / "m"), tmp_path / "state", ListSink()
    log.append(_record(1))
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    log.append(_record(2))
    sink.failures = 1
    with pytest.raises(ConnectionError):
        follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    assert sink.steps == [1, 2]


def test_a_backend_that_knows_better_is_believed(tmp_path: Path) -> None:
    """What the backend lost with its last process is sent again, whatever the state file says."""
    log, state, sink = MetricsLog(tmp_path / "m"), tmp_path / "state", ListSink()
    log.append(_record(1))
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    sink.known = 0
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    assert sink.steps == [1, 1]


def test_the_run_is_closed_with_its_own_status(tmp_path: Path) -> None:
    """The `end` event decides; metrics after it mean that the run was resumed."""
    log, state, sink = MetricsLog(tmp_path / "m"), tmp_path / "state", ListSink()
    log.append({"event": "end", "values": {"status": "failed"}})
    log.append({"event": "exit", "values": {"service": "learner"}})
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    assert sink.finished == "failed"
    log.append(_record(3))
    follow(tmp_path / "m", state, sink, _script(), lambda: 0.0)
    assert sink.finished == "killed"


def test_the_doorbell_rings_and_ends() -> None:
    """Bytes are news, a timeout is not the end, a closed pipe is."""
    ear, hand = os.pipe()
    wait = doorbell(ear)
    assert wait(0.0)
    os.write(hand, b"xx")
    assert wait(None)
    os.close(hand)
    assert not wait(None)
    os.close(ear)


def _died(pid: int | None) -> None:
    assert pid is not None
    fd = os.pidfd_open(pid)
    death = select.poll()
    death.register(fd)
    assert death.poll(20_000), "the sink lives"
    os.close(fd)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_dead_sink_is_started_again_with_growing_waits(tmp_path: Path) -> None:
    """1, 2, 4 ... seconds between starts, on the caller's clock; a long life forgives earlier deaths."""
    sink, now, waits = SinkProcess(_python("import signal; signal.pause()"), tmp_path / "log"), 100.0, []
    sink.tick(now)
    for life in (0.0, 0.0, 0.0, 100.0):
        assert sink.pid is not None
        os.kill(sink.pid, signal.SIGKILL)
        _died(sink.pid)
        now += life
        sink.tick(now)
        assert not sink.alive
        sink.notify()
        waits.append(sink.next_deadline() - now)
        now = sink.next_deadline()
        sink.tick(now)
    assert waits == [1.0, 2.0, 4.0, 1.0]
    assert sink.restarts == 4
    assert not sink.close(0.0)
    assert not sink.alive


def test_a_sink_that_cannot_work_is_given_up(tmp_path: Path) -> None:
    """Exit status 78 ends the attempts and says where to look."""
    sink = SinkProcess(_python("import sys; sys.exit(78)"), tmp_path / "log")
    sink.tick(0.0)
    _died(sink.pid)
    sink.tick(0.0)
    assert sink.problem == f"gave up, see {tmp_path}/log"
    sink.tick(1e9)
    assert not sink.alive


def test_a_stalled_sink_blocks_nobody(tmp_path: Path) -> None:
    """A stopped sink takes 200,000 rings without blocking, and is killed when it does not leave."""
    sink = SinkProcess(_python("import signal; signal.pause()"), tmp_path / "log")
    sink.tick(0.0)
    assert sink.pid is not None
    os.kill(sink.pid, signal.SIGSTOP)
    for _ in range(200_000):
        sink.notify()
    assert not sink.close(0.0)


def test_a_sink_leaves_by_itself_when_its_stdin_ends(tmp_path: Path) -> None:
    """Closing gives the sink time to flush, and it is not started again."""
    sink = SinkProcess(_python("import sys; sys.stdin.read(); print('flushed')"), tmp_path / "log")
    sink.tick(0.0)
    sink.notify()
    assert sink.close(20.0)
    assert (tmp_path / "log").read_text() == "flushed\n"
    sink.tick(time.monotonic() + 1e6)
    assert not sink.alive
