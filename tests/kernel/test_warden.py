"""The warden with real processes: what it starts, what it reports, and that nothing is left, however it ends."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.warden_run import CHILD, DEADLINE_S, PYTHON, Run

from midflight.kernel.process import marked_processes, read_stat
from midflight.kernel.warden_link import WardenLink, WardenLost

Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs in tmp_path and ends them, however the test ended."""
    runs = list[Run]()

    def begin(*options: str, kernel: list[str] | None = None) -> Run:
        runs.append(Run(tmp_path, *options, kernel=kernel))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


def test_exit_is_reported_with_code_signal_and_the_end_of_the_output(start: Start) -> None:
    """The kernel learns how a child ended and its last 20 lines; the file holds all of it, for its owner only."""
    run = start()
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a")
    run.spawn(kernel, "b", 7)
    a.obey("print", text="line\n", times=30)
    a.obey("print", text="last \x1b[31mwords", times=1)
    a.tell("exit", code=5)
    ended = kernel.hear(event="Exit", name="a")
    assert (ended["generation"], ended["pid"], ended["code"], ended["signal"], ended["oom"]) == (
        1,
        a.pid,
        5,
        None,
        False,
    )
    assert ended["out"].splitlines()[-1] == "last  [31mwords"
    assert len(ended["out"].splitlines()) == 20
    assert kernel.ask("kill", name="b", generation=7, signum=int(signal.SIGKILL))["event"] == "Done"
    ended = kernel.hear(event="Exit", name="b")
    assert (ended["generation"], ended["code"], ended["signal"]) == (7, None, 9)
    out = run.dir / "logs" / "a.1.out"
    assert out.read_text().count("line\n") == 30
    for private in (out, run.dir / "logs" / "warden.out", run.dir / "warden.json", run.dir / "warden.sock"):
        assert private.stat().st_mode & 0o777 == 0o600, private


def test_unread_output_blocks_nobody(start: Start) -> None:
    """2 MB of output that nobody reads go to a file, and the child goes on."""
    run = start()
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a")
    a.obey("print", text="0123456789abcde\n", times=1 << 17)
    a.tell("exit", code=0)
    assert len(kernel.hear(event="Exit")["out"]) <= 4096
    assert (run.dir / "logs" / "a.1.out").stat().st_size > 2e6


def test_environment_limits_and_identity_of_a_child(start: Start) -> None:
    """The bootstrap applies what the warden was asked for: descriptors, memory, out-of-memory score."""
    run = start()
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a", 3, env={"EXTRA": "1"}, memory_bytes=1 << 30, nofile=77)
    environ = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{a.pid}/environ").read_text().rstrip("\0").split("\0") if pair
    )
    marks = {
        "RUN_DIR": str(run.dir),
        "RUN_ID": run.id,
        "NAME": "a",
        "GENERATION": "3",
        "WARDEN_PID": str(run.warden.pid),
    }
    assert {f"MIDFLIGHT_{key}": value for key, value in marks.items()}.items() | {("EXTRA", "1")} <= environ.items()
    limits = Path(f"/proc/{a.pid}/limits").read_text()
    assert f"Max data size             {1 << 30}" in limits
    assert "Max open files            77 " in limits
    assert Path(f"/proc/{a.pid}/oom_score_adj").read_text() == "500\n"
    assert os.getsid(a.pid) == a.pid
    assert [stat.pid for stat in marked_processes(run.id, "a", 3)] == [a.pid]
    assert json.loads((run.dir / "warden.json").read_text()) == {
        "pid": run.warden.pid,
        "started": read_stat(run.warden.pid).started,
    }


def test_memory_limit_ends_only_the_offender(start: Start) -> None:
    """A child that allocates beyond its limit dies of it; its neighbour and the kernel do not notice."""
    run = start()
    kernel = run.meet("kernel")
    greedy, other = run.spawn(kernel, "greedy", memory_bytes=1 << 28), run.spawn(kernel, "other")
    greedy.tell("allocate", bytes=1 << 30)
    ended = kernel.hear(event="Exit")
    assert (ended["name"], ended["code"]) == ("greedy", 1)
    assert ended["out"].endswith("MemoryError")
    other.obey("print", text="fine", times=1)


def test_spawn_is_idempotent_and_a_generation_starts_once(start: Start) -> None:
    """The same spawn twice is one process; another generation needs `beside`; an old one never starts again."""
    run = start()
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a", 2)
    argv = [*PYTHON, str(CHILD), "service"]
    assert kernel.ask("spawn", name="a", generation=2, argv=argv)["pid"] == a.pid
    assert "lives" in kernel.ask("spawn", name="a", generation=3, argv=argv)["why"]
    beside = run.spawn(kernel, "a", 3, beside=True)
    listing = kernel.ask("list_children")
    assert [(child["generation"], child["pid"], child["started"]) for child in listing["children"]] == [
        (2, a.pid, a.started),
        (3, beside.pid, beside.started),
    ]
    a.tell("exit", code=0)
    kernel.hear(event="Exit", generation=2)
    assert "generations grow" in kernel.ask("spawn", name="a", generation=2, argv=argv)["why"]


def test_what_cannot_be_done_is_refused_and_harms_nobody(start: Start) -> None:
    """Malformed packets, unknown programs and absent targets get one clear line back; the kernel lives on."""
    run = start()
    kernel = run.meet("kernel")
    assert "No such file" in kernel.ask("spawn", name="a", generation=1, argv=["/nowhere/program"])["why"]
    assert "not a name" in kernel.ask("spawn", name="../a", generation=1, argv=["true"])["why"]
    assert "not a name" in kernel.ask("spawn", name="kernel", generation=99, argv=["true"])["why"]
    assert "type int" in kernel.ask("spawn", name="a", generation=True, argv=["true"])["why"]
    assert "no a#1 lives" in kernel.ask("kill", name="a", generation=1)["why"]
    huge = '{"id": 0, "op": "stop", "grace_s": 1e999}'
    a = run.spawn(kernel, "a")
    signals = json.dumps({"id": 0, "op": "kill", "name": "a", "generation": 1, "signal": 10**30})
    for packet in (
        "nonsense",
        "[]",
        "{}",
        '{"id": 0, "op": "fly"}',
        '{"id": "\\ud800", "op": []}',
        huge,
        signals,
        "[" * 9999,
    ):
        kernel.tell("raw", packet=packet)
        assert kernel.hear(event="Refused")["why"]
    assert kernel.ask("list_children")["children"][0]["pid"] == a.pid


def test_only_the_kernel_is_listened_to(start: Start) -> None:
    """A process the warden did not start as its kernel gets no answer, and the kernel keeps its link."""
    run = start()
    kernel = run.meet("kernel")
    link = WardenLink(run.dir)
    link.connect(time.monotonic() + DEADLINE_S)
    link.stop(0.0)
    select.select([link], [], [], DEADLINE_S)
    with pytest.raises(WardenLost, match="not its kernel"):
        link.receive()
    link.close()
    assert kernel.ask("list_children")["children"] == []


def test_killed_warden_takes_everything_with_it_even_the_stopped(start: Start) -> None:
    """SIGKILL of the warden ends kernel and services; what had left its session ends with the next start."""
    run = start()
    kernel = run.meet("kernel")
    a, stopped = run.spawn(kernel, "a"), run.spawn(kernel, "stopped")
    os.kill(stopped.pid, signal.SIGSTOP)
    a.obey("fork", marked=True, session=True)
    orphan = run.meet("orphan")
    run.warden.kill()
    run.warden.wait()
    assert kernel.dies()
    assert a.dies()
    assert stopped.dies()
    run.start()
    run.meet("kernel")
    assert orphan.dies()
    assert "killed 1 processes left by an earlier warden" in run.log()


def test_descendants_die_with_their_service(start: Start) -> None:
    """What left the session, or cleared its marks, is gone after its service died; that of another service stays."""
    run = start()
    kernel = run.meet("kernel")
    a, b = run.spawn(kernel, "a"), run.spawn(kernel, "b")
    a.obey("fork", marked=True, session=True)
    orphan_of_a = run.meet("orphan")
    a.obey("fork", marked=False, session=False)
    unmarked_orphan_of_a = run.meet("orphan")
    b.obey("fork", marked=True, session=True)
    orphan_of_b = run.meet("orphan")
    a.tell("exit", code=1)
    kernel.hear(event="Exit", name="a")
    assert orphan_of_a.dies()
    assert unmarked_orphan_of_a.dies()
    orphan_of_b.obey("print", text="here", times=1)


def test_nothing_is_left_when_the_kernel_ends_the_run(start: Start) -> None:
    """Kernel exit 0 ends the run: a grandchild without session, parent or marks is gone too, and so are the files."""
    run = start()
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a")
    a.obey("fork", marked=False, session=True)
    orphan = run.meet("orphan")
    stranger = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, env={"MIDFLIGHT_RUN_ID": run.id})
    kernel.tell("exit", code=0)
    assert run.ends() == 0
    assert a.dies()
    assert orphan.dies()
    stranger.communicate()
    assert stranger.returncode == -signal.SIGKILL
    assert marked_processes(run.id) == []
    assert sorted(path.name for path in run.dir.iterdir()) == ["logs"]


def test_stop_request_gives_the_exit_code(start: Start) -> None:
    """`stop` ends the run with the kernel's code, newest service first and the kernel last."""
    run = start()
    kernel = run.meet("kernel")
    for name in ("a", "b", "c"):
        run.spawn(kernel, name)
    assert kernel.ask("stop", grace_s=20.0, code=9)["event"] == "Done"
    kernel.hear(event="Stopping")
    assert run.ends() == 9
    ended = [line.split()[2] for line in run.log().splitlines() if "ended with signal 15" in line]
    assert ended == ["c#1", "b#1", "a#1", "kernel#1"]


def test_last_words_of_the_kernel_count(start: Start) -> None:
    """A kernel that asks for the end and leaves at once is heard, even by a warden that was stopped meanwhile."""
    run = start()
    kernel = run.meet("kernel")
    os.kill(run.warden.pid, signal.SIGSTOP)
    kernel.call("stop", grace_s=1.0, code=9)
    kernel.tell("exit", code=0)
    assert kernel.dies()
    os.kill(run.warden.pid, signal.SIGCONT)
    assert run.ends() == 9


def restarts(start: Start, count: int) -> None:
    """Start a child `count` times and see that nothing accumulates."""
    run = start()
    kernel = run.meet("kernel")
    warden = psutil.Process(run.warden.pid)
    kernel.ask("list_children")  # once answered, the connection is accepted and counted
    descriptors = warden.num_fds()
    for generation in range(1, count + 1):
        assert kernel.ask("spawn", name="a", generation=generation, argv=["/bin/true"])["event"] == "Spawned"
        assert kernel.hear(event="Exit", generation=generation)["code"] == 0
    assert warden.num_fds() == descriptors
    assert [child.pid for child in warden.children()] == [kernel.pid]
    assert len(list((run.dir / "logs").glob("a.*.out"))) == 20


def test_50_restarts_leave_no_zombie_and_no_descriptor(start: Start) -> None:
    """Every child is reaped and closed, and old output files are removed."""
    restarts(start, 50)


@pytest.mark.slow
def test_1000_restarts_leave_no_zombie_and_no_descriptor(start: Start) -> None:
    """The same, long enough to see a slow leak."""
    restarts(start, 1000)


def test_killed_kernel_comes_back_and_finds_its_children(start: Start) -> None:
    """Children outlive the kernel with their pids; the next one is told who lives and how the others ended."""
    run = start()
    kernel = run.meet("kernel")
    a, b, c = run.spawn(kernel, "a"), run.spawn(kernel, "b"), run.spawn(kernel, "c")
    kernel.tell("mute")
    b.tell("exit", code=4)
    kernel.hear(event="Exit", name="b")
    os.kill(kernel.pid, signal.SIGSTOP)
    c.tell("exit", code=6)
    assert c.dies()
    os.kill(kernel.pid, signal.SIGKILL)
    successor = run.meet("kernel")
    assert successor.generation == 2
    listing = successor.ask("list_children")
    assert [(child["name"], child["pid"]) for child in listing["children"]] == [("a", a.pid)]
    assert [(ended["name"], ended["code"]) for ended in listing["exits"]] == [("b", 4), ("c", 6)]
    successor.call("ping")
    assert successor.ask("list_children")["exits"] == []
    a.obey("print", text="still here", times=1)


def test_hung_kernel_is_killed_and_restarted(start: Start) -> None:
    """A kernel that does not ping for --watchdog seconds is replaced; its services live on."""
    run = start("--watchdog", "1.5")
    kernel = run.meet("kernel")
    a = run.spawn(kernel, "a")
    os.kill(kernel.pid, signal.SIGSTOP)
    successor = run.meet("kernel")
    assert kernel.dies()
    assert "has not pinged" in run.log()
    assert successor.ask("list_children")["children"][0]["pid"] == a.pid


def test_crash_storm_of_the_kernel_ends_the_run(start: Start) -> None:
    """A kernel that dies at every start is given up, with code 70 and a line that says where to look."""
    run = start(kernel=[*PYTHON, "-I", "-c", "raise SystemExit('no configuration')"])
    assert run.ends() == 70
    assert "giving up: the kernel died 6 times in a row, at last with code 1; see" in run.log()
    assert "kernel.6.out" in run.log()
    assert (run.dir / "logs" / "kernel.6.out").read_text() == "no configuration\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_everything_in_bounded_time(start: Start, signum: int) -> None:
    """One signal: SIGTERM, grace, SIGKILL, also for the deaf and the stopped."""
    run = start("--grace", "0.4")
    kernel = run.meet("kernel")
    deaf, stopped = run.spawn(kernel, "deaf"), run.spawn(kernel, "stopped")
    deaf.obey("ignore")
    os.kill(stopped.pid, signal.SIGSTOP)
    begun = time.monotonic()
    run.warden.send_signal(signum)
    assert run.ends() == 0
    assert time.monotonic() - begun < 5.0
    assert deaf.dies()
    assert stopped.dies()
    ended = [line.split()[2] for line in run.log().splitlines() if "ended with signal" in line]
    assert sorted(ended[:2]) == ["deaf#1", "stopped#1"]
    assert ended[2:] == ["kernel#1"]


def test_second_signal_does_not_wait(start: Start) -> None:
    """A second SIGINT cuts a long grace short."""
    run = start("--grace", "1000")
    kernel = run.meet("kernel")
    deaf = run.spawn(kernel, "deaf")
    deaf.obey("ignore")
    run.warden.send_signal(signal.SIGINT)
    kernel.hear(event="Stopping")
    assert "ending" in kernel.ask("spawn", name="late", generation=1, argv=["true"])["why"]
    run.warden.send_signal(signal.SIGINT)
    assert run.ends() == 0
    assert deaf.dies()


def test_second_warden_in_the_same_directory_is_refused(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """It says who holds the directory and touches nothing; after a SIGKILL the directory is free again."""
    first = start()
    kernel = first.meet("kernel")
    assert start().ends() == 69
    assert f"process id {first.warden.pid}" in capfd.readouterr().err
    assert kernel.ask("list_children")["children"] == []
