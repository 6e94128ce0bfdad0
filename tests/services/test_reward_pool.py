import contextlib
import math
import os
import select
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.reward_bench import BY_ANSWER, HANG, Bench

from midflight.services.reward import InfrastructureFault, Job, Pool, ProgramFault, Scored, Spec
from midflight.services.reward.verdict import Outcome

Open = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Open]:
    """Opens pools; closes them at the end and checks that no process and no folder is left."""
    opened: list[Bench] = []
    os.mkfifo(tmp_path / "fifo")

    def open_pool(code: str = BY_ANSWER, workers: int = 1, capacity: int = 4096, **spec: object) -> Bench:
        file, scratch = tmp_path / "rewards.py", tmp_path / f"scratch-{len(opened)}"
        file.write_text(textwrap.dedent(code))
        scratch.mkdir()
        pool = Pool(Spec(file, scratch=scratch, **spec), workers, capacity)  # type: ignore[arg-type]
        opened.append(Bench(pool, scratch))
        return opened[-1]

    yield open_pool
    for bench in opened:
        pids = bench.pool.pids
        bench.pool.close()
        assert list(bench.scratch.iterdir()) == []
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _fault(outcome: Outcome) -> ProgramFault:
    assert isinstance(outcome, ProgramFault), outcome
    return outcome


def test_numbers_dicts_and_coroutines_are_scored(bench: Open) -> None:
    """A float, an int, a bool, named objectives and an `async def` all give finite named rewards."""
    pool = bench("""
        import asyncio
        async def later(value):
            await asyncio.sleep(0)
            return value
        def reward_fn(messages, answer):
            if answer == "async":
                return later({"a": 0.25, "b": 2})
            return {"echo": 0.5, "n": len(messages[0]["content"])} if answer == "dict" else answer
    """)
    outcomes = pool.score(0.5, 3, True, "dict", "async", "async")
    assert [outcome.rewards for outcome in outcomes if isinstance(outcome, Scored)] == [
        {"reward": 0.5},
        {"reward": 3.0},
        {"reward": 1.0},
        {"echo": 0.5, "n": 2.0},
        {"a": 0.25, "b": 2.0},
        {"a": 0.25, "b": 2.0},
    ]


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("float('nan')", "returned nan for 'reward' - a reward must be finite"),
        ("{'a': 1.0, 'b': float('inf')}", "returned inf for 'b'"),
        ("None", "returned None for 'reward' - expected a number"),
        ("'0.5'", "returned '0.5' for 'reward'"),
        ("{}", "returned an empty dict"),
        ("{3: 1.0}", "returned the objective name 3"),
        ("{'\\ud800': 1.0}", "returned the objective name '\\ud800'"),
        ("1e31", "returned 1e+31 for 'reward' - a reward must be finite, and at most 1e+30"),
        ("{f'o{n}': 1.0 for n in range(33)}", "returned 33 objectives - at most 32"),
    ],
)
def test_a_result_that_is_no_reward_is_the_programs_fault(bench: Open, result: str, why: str) -> None:
    """NaN, infinity and wrong types are never a reward, least of all 0."""
    fault = _fault(bench(f"def reward_fn(messages, answer): return {result}").score(None)[0])
    assert fault.blame == "returned"
    assert why in fault.why


def test_an_exception_is_reported_with_the_users_lines_and_the_worker_lives_on(bench: Open) -> None:
    """The traceback begins in the user's file, and the next job runs in the same process."""
    pool = bench("""
        def reward_fn(messages, answer):
            if answer == "exit":
                raise SystemExit(3)
            return 1.0 / answer
    """)
    before = pool.score(1)
    pids = pool.pool.pids
    raised, left, fine = pool.score(0, "exit", 2)
    assert before == [Scored({"reward": 1.0}, before[0].seconds)]  # type: ignore[union-attr]
    assert _fault(raised).blame == "raised"
    assert _fault(raised).why == "reward_fn raised ZeroDivisionError: float division by zero"
    assert "return 1.0 / answer" in _fault(raised).tail
    assert "program.py" not in _fault(raised).tail
    assert "SystemExit" in _fault(left).why
    assert isinstance(fine, Scored)
    assert pool.pool.pids == pids


UNREACHABLE = """
def reward_fn(messages, answer):
    if answer == "away":
        raise ConnectionRefusedError(111, "the judge is away")
    return 1.0
"""


def test_who_cannot_be_reached_is_no_fault_of_the_program(bench: Open) -> None:
    """A ConnectionError of a file that was given the network: another try. Without the network it is its own fault."""
    away, there = bench(UNREACHABLE, network=True).score("away", "there")
    assert isinstance(away, InfrastructureFault)
    assert "ConnectionRefusedError" in away.why
    assert isinstance(there, Scored)
    fault = _fault(bench(UNREACHABLE).score("away")[0])
    assert (fault.blame, "the judge is away" in fault.tail) == ("unreachable", True)


def test_a_hang_is_killed_at_its_limit_and_its_batch_mates_are_scored(bench: Open) -> None:
    """Past the limit the hanging job alone is blamed, with the place where it hung; the others get their rewards."""
    pool = bench(time_limit_s=5.0)
    pid = pool.begin(HANG, "", "", "")
    pool.skip(4.0)
    assert pool.outcomes == {}
    pool.skip(2.0)
    pool.until(lambda: len(pool.outcomes) == 4)
    hung, *others = (pool.outcomes[number] for number in range(4))
    assert (_fault(hung).blame, _fault(hung).why) == ("time", "reward_fn gave no result within 5 s")
    assert 'File "<string>", line 1 in <module>' in _fault(hung).tail
    assert all(isinstance(outcome, Scored) for outcome in others)
    assert not Path(f"/proc/{pid}").exists()


def test_another_time_limit_holds_from_the_next_call(bench: Open) -> None:
    """The call that runs keeps its own; the next worker's, and a warm worker's, has the new one."""
    pool = bench(time_limit_s=5.0)
    pool.begin(HANG)
    pool.pool.limit(60.0)
    pool.skip(6.0)
    pool.until(lambda: len(pool.outcomes) == 1)
    assert _fault(pool.outcomes[0]).why == "reward_fn gave no result within 5 s"
    pool.begin(HANG)
    pool.skip(50.0)
    assert len(pool.outcomes) == 1
    pool.skip(20.0)
    pool.until(lambda: len(pool.outcomes) == 2)
    assert _fault(pool.outcomes[1]).why == "reward_fn gave no result within 60 s"


def test_a_warm_worker_hears_of_another_time_limit(bench: Open) -> None:
    """Its CPU time is bounded by the new limit too, and no verdict is held back by the message between two jobs."""
    pool = bench("""
        import resource
        def reward_fn(messages, answer):
            return resource.getrlimit(resource.RLIMIT_CPU)[0]
    """)
    (before,) = pool.score("")
    pids = pool.pool.pids
    pool.submit("")
    pool.pool.limit(5000.0)
    pool.until(lambda: len(pool.outcomes) == 2)
    (after,) = pool.score("")
    assert isinstance(before, Scored)
    assert isinstance(after, Scored)
    assert before.rewards["reward"] < 5000.0 < after.rewards["reward"]
    assert pool.pool.pids == pids


def test_a_hang_that_ignores_the_request_to_die_is_killed_with_its_children(bench: Open) -> None:
    """A function that ignores SIGABRT is gone after the grace, and so is the child it holds."""
    code = """
signal.signal(signal.SIGABRT, signal.SIG_IGN)
if os.fork() == 0: tell(os.getpid())
while True: signal.pause()
"""
    pool = bench(time_limit_s=5.0)
    pid = pool.begin(code)
    pool.skip(6.0)
    pool.skip(1.0)
    pool.until(lambda: len(pool.outcomes) == 1)
    assert _fault(pool.outcomes[0]).blame == "time"
    _await_death(pid)
    _await_death(int(pool.told))


def _await_death(pid: int) -> None:
    """Wait for the end of any process; a zombie has ended."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        death = select.poll()
        death.register(fd)
        assert death.poll(20_000), f"process {pid} lives"
        os.close(fd)


@pytest.mark.parametrize("hog", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
def test_memory_beyond_the_limit_is_the_programs_fault(bench: Open, hog: str) -> None:
    """A hog gets one more try in a fresh process, then the verdict "memory"; its mates are scored."""
    before, hogged, after = bench(memory_bytes=256 << 20).score("", hog, "")
    assert (_fault(hogged).blame, _fault(hogged).why) == ("memory", "reward_fn ran out of memory")
    assert isinstance(before, Scored)
    assert isinstance(after, Scored)


def test_a_leak_of_earlier_jobs_is_not_blamed_on_a_later_one(bench: Open) -> None:
    """A job that finds the process full is scored by a fresh worker."""
    pool = bench(memory_bytes=256 << 20)
    leak = "sys.leak = bytearray(160 << 20)"
    assert all(isinstance(outcome, Scored) for outcome in pool.score(leak, "x = bytearray(160 << 20)", ""))


@pytest.mark.parametrize(
    ("end", "how"),
    [("os._exit(3)", "exited with status 3"), ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by signal 11")],
)
def test_ending_the_process_is_the_fault_of_the_job_that_did_it(bench: Open, end: str, how: str) -> None:
    """The one job that was running is blamed; jobs sent with it are scored by the next worker."""
    first, ended, last = bench().score("", end, "")
    assert (_fault(ended).blame, how in _fault(ended).why) == ("exit", True)
    assert isinstance(first, Scored)
    assert isinstance(last, Scored)


def test_sigkill_from_outside_is_tried_again_once(bench: Open) -> None:
    """A worker killed by someone else costs nothing; a job that is always killed is refused with its reason."""
    pool = bench()
    pid = pool.begin(HANG)
    os.kill(pid, signal.SIGKILL)
    pool.until(lambda: pid not in pool.pool.pids)
    assert pool.outcomes == {}
    os.kill(pool.begin(), signal.SIGKILL)
    pool.until(lambda: len(pool.outcomes) == 1)
    assert "was killed by signal 9" in _fault(pool.outcomes[0]).why


def test_printing_cannot_forge_a_verdict(bench: Open) -> None:
    """Frames and garbage on stdout and stderr change nothing; a flood of output ends at the file limit."""
    forged = (
        'import struct; body = b\'{"rewards": {"reward": 9}, "seconds": 0}\'\n'
        "for fd in (1, 2): os.write(fd, struct.pack('<cIQ', b'S', len(body), 0) + body)\n"
        "print('garbage' * 1000)"
    )
    honest, flooded, after = bench().score(forged, "while True: print('x' * 100000)", "")
    assert isinstance(honest, Scored)
    assert honest.rewards == {"reward": 1.0}
    assert "File too large" in _fault(flooded).why
    assert isinstance(after, Scored)


def test_rubbish_on_the_verdict_channel_is_blamed_on_its_writer(bench: Open) -> None:
    """Code that searches its process can reach the channel at this level; what garbles it is refused."""
    rubbish = "for fd in map(int, os.listdir('/proc/self/fd')):\n  try: os.write(fd, b'x' * 64)\n  except OSError: pass"
    refused, after = bench().score(rubbish, "")
    assert "wrote to the verdict channel" in _fault(refused).why
    assert isinstance(after, Scored)


def test_a_fork_left_behind_does_not_answer(bench: Open) -> None:
    """Both processes return from reward_fn, and the job still has one verdict."""
    assert all(isinstance(outcome, Scored) for outcome in bench().score("os.fork()", "os.fork()", ""))


def test_only_the_leader_of_another_session_outlives_the_kill(bench: Open) -> None:
    """A child dies with the group; one that calls setsid() survives, the documented gap of the level "rlimits"."""
    pool = bench()
    pool.begin("""
child = os.fork()
if child and os.fork() == 0:
    os.setsid()
    tell(f"{child} {os.getpid()}")
signal.pause()
""")
    child, leader = map(int, pool.told.split())
    pool.pool.close()
    try:
        _await_death(child)
        assert Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[0] in "RSD"
    finally:
        os.kill(leader, signal.SIGKILL)


def test_the_worker_sees_no_secret_of_its_parent(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is PATH, HOME, TMPDIR, LANG and what is allowed by name; home is empty and its own."""
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("RM_URL", "http://rm")
    pool = bench(
        """
        import os
        def reward_fn(messages, answer):
            home = os.environ["HOME"]
            assert os.getcwd() == home and os.listdir(home) == []
            return dict.fromkeys(os.environ, 1.0)
        """,
        env=("RM_URL",),
    )
    outcome = pool.score(None)[0]
    assert isinstance(outcome, Scored), outcome
    assert set(outcome.rewards) - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR", "LANG", "RM_URL"}


def test_a_thousand_jobs_and_two_workers_give_a_thousand_verdicts(bench: Open) -> None:
    """No job is lost or scored twice in a burst, long rows included."""
    pool = bench("def reward_fn(messages, answer): return len(answer)", workers=2)
    answers = ["x" * (number % 7) for number in range(1000)]
    answers[500] = "x" * (2 << 20)
    outcomes = pool.score(*answers)
    assert [round(o.rewards["reward"]) for o in outcomes if isinstance(o, Scored)] == [len(a) for a in answers]


def test_the_pool_is_bounded(bench: Open) -> None:
    """A full pool says no; the same id twice and a job that is not JSON are errors of the caller."""
    pool = bench(capacity=2).pool
    assert [pool.submit(Job(number, [], None)) for number in range(3)] == [True, True, False]
    other = bench().pool
    other.submit(Job(1, [], None))
    with pytest.raises(ValueError, match="job 1 is in the pool already"):
        other.submit(Job(1, [], None))
    with pytest.raises(TypeError):
        other.submit(Job(2, [], object()))


def test_the_bound_can_be_raised_and_never_falls(bench: Open) -> None:
    """What was promised room keeps it."""
    pool = bench(capacity=1).pool
    pool.hold(3)
    pool.hold(2)
    assert [pool.submit(Job(number, [], None)) for number in range(4)] == [True, True, True, False]


def test_closing_answers_every_open_job(bench: Open) -> None:
    """Jobs without a verdict are the infrastructure's fault, and the closed pool takes no more."""
    pool = bench()
    pool.begin(HANG, "", "")
    closed = InfrastructureFault("the reward pool was closed")
    assert {verdict.id: verdict.outcome for verdict in pool.pool.close()} == {0: closed, 1: closed, 2: closed}
    assert not pool.pool.submit(Job(3, [], None))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import json\nimport no_such_module", "rewards.py:2: importing the file raised ModuleNotFoundError"),
        ("import sys\ndef f():\n    sys.exit(1)\nf()", "rewards.py:3: importing the file raised SystemExit"),
        ("def reward(messages, answer): return 1.0", "rewards.py:1: no function reward_fn(messages, answer)"),
    ],
)
def test_a_file_that_cannot_be_imported_breaks_the_pool_with_its_line(bench: Open, code: str, text: str) -> None:
    """The reason is there once, with file and line, and waiting jobs are given back, not scored 0."""
    pool = bench(code)
    assert isinstance(pool.score("")[0], InfrastructureFault)
    assert text in str(pool.pool.broken)
    assert pool.pool.next_deadline() == math.inf or pool.pool.pids


def test_an_import_that_ends_the_process_breaks_the_pool_after_some_tries(bench: Open) -> None:
    """A worker that never gets ready is retried with growing waits, then given up with its last words."""
    pool = bench("import os\nprint('last words')\nos._exit(7)")
    assert isinstance(pool.score("")[0], InfrastructureFault)
    assert pool.pool.broken == "a reward worker ended with status 7 before it was ready: last words"
