"""The sealed levels as the service uses them: the same verdicts as ever, nothing shared, nothing left."""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.sandbox_bench import Sandbox, fault, need

from midflight.kernel.mistake import UserMistake
from midflight.services.reward import InfrastructureFault, Job, Scored, slot
from midflight.services.reward.config import RewardConfig
from midflight.services.reward.sandbox import ladder
from midflight.services.reward.sandbox.levels import SEALED

Open = Callable[..., Sandbox]
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=SEALED)
def level(request: pytest.FixtureRequest) -> str:
    """Each sealed level that works here."""
    need(request.param)
    return str(request.param)


@pytest.fixture
def box(tmp_path: Path, level: str) -> Iterator[Open]:
    """Opens a pool at the level; closes it at the end and checks that nothing is left."""
    opened: list[Sandbox] = []

    def start(code: str | None = None, **spec: object) -> Sandbox:
        given = {} if code is None else {"code": textwrap.dedent(code)}
        opened.append(Sandbox(tmp_path, level, **given, **spec))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_the_environment_is_path_home_and_what_is_passed_by_name(box: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything of the service's own to be found in /proc."""
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("RM_URL", "http://rm")
    everything = """
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ('environ', 'cmdline'):
        try: got['hunter2'] = got.get('hunter2', 0.0) + open(f'/proc/{pid}/{name}').read().count('hunter2')
        except OSError: pass
got.update(dict.fromkeys(os.environ, 1.0))
assert os.environ['HOME'] == os.getcwd()
import tempfile; assert tempfile.gettempdir() == os.getcwd(), tempfile.gettempdir()
"""
    (outcome,) = box(env=("RM_URL",)).score(everything)
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards.pop("hunter2") == 0.0
    assert set(outcome.rewards) == {"PATH", "HOME", "RM_URL"}


def test_libraries_and_the_python_path_can_be_imported_and_not_written(box: Open, tmp_path: Path) -> None:
    """Packages of the interpreter, and modules of the topology's folder, even below a folder closed to others."""
    code = tmp_path / "closed" / "code"
    code.mkdir(parents=True)
    (code / "mine.py").write_text("VALUE = 0.25\n")
    (tmp_path / "closed").chmod(0o700)
    source = """
        import asyncio, multiprocessing, numpy, mine
        async def reward_fn(messages, answer):
            await asyncio.sleep(0)
            try: open(mine.__file__, "a")
            except OSError: lock = bool(multiprocessing.Lock())
            return {"mine": mine.VALUE, "sum": numpy.arange(4).sum(), "lock": lock}
    """
    (outcome,) = box(source, python_path=(str(code),)).score(None)
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"mine": 0.25, "sum": 6.0, "lock": 1.0}


def test_calls_share_nothing_but_what_the_import_made(box: Open) -> None:
    """What a call changes in memory, or in a file that the import wrote, the next one does not see."""
    code = """
        import os, tempfile
        made = os.path.join(tempfile.mkdtemp(), "data")
        with open(made, "w") as file: file.write("1")
        seen = [1.0]
        def reward_fn(messages, answer):
            seen[0] += 1
            try: open(made, "w")
            except OSError: return {"seen": seen[0], "data": int(open(made).read())}
    """
    assert [outcome.rewards for outcome in box(code).score(1, 2) if isinstance(outcome, Scored)] == [
        {"seen": 2.0, "data": 1.0},
        {"seen": 2.0, "data": 1.0},
    ]


def test_a_file_that_cannot_be_imported_breaks_the_pool_with_its_line(box: Open) -> None:
    """As at every level: waiting jobs are given back, and the reason is there."""
    pool = box("import json\nimport no_such_module")
    (outcome,) = pool.score(None)
    assert isinstance(outcome, InfrastructureFault)
    assert "rewards.py:2: importing the file raised ModuleNotFoundError" in str(pool.pool.broken)


def test_a_sandbox_killed_from_outside_costs_nothing(box: Open) -> None:
    """Its calls go to the next one, and none is blamed."""
    pool = box()
    pool.score("")
    os.kill(pool.pool.pids[0], signal.SIGKILL)
    assert all(isinstance(outcome, Scored) for outcome in pool.score("", "", ""))


def test_a_sandbox_stopped_from_outside_costs_nothing(box: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It should have ended the call in time: as it did not, nobody knows what the call would have said."""
    pool = box()
    pool.score("")
    (keeper,) = pool.pool.pids
    inner = int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text())
    os.kill(inner, signal.SIGSTOP)
    monkeypatch.setattr(slot, "_BEGIN_LIMIT", 2.0)
    assert all(isinstance(outcome, Scored) for outcome in pool.score("", ""))
    monkeypatch.undo()
    monkeypatch.setattr(slot, "_OWN_LIMIT", 1.0)
    (keeper,) = pool.pool.pids
    inner = int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text())
    pool.pool.limit(2.0)
    assert pool.pool.submit(Job(10**6, [], "time.sleep(1.0)"))
    while not pool.pool.busy or not Path(f"/proc/{inner}/task/{inner}/children").read_text():
        pool.pool.tick(time.monotonic())
    os.kill(inner, signal.SIGSTOP)
    (verdict,) = pool.verdicts(within=60.0)
    assert isinstance(verdict.outcome, Scored), verdict


def test_a_stopped_sandbox_and_keeper_cost_nothing(box: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper too, which would not see that its sandbox was ended for that."""
    pool = box()
    pool.score("")
    (keeper,) = pool.pool.pids
    inner = int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text())
    for pid in (inner, keeper):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(slot, "_BEGIN_LIMIT", 2.0)
    assert all(isinstance(outcome, Scored) for outcome in pool.score("", ""))


def test_a_memory_verdict_is_not_tried_again(box: Open) -> None:
    """A call has a process of its own: no other call can have filled it."""
    hogged, after = box(memory_bytes=256 << 20).score("x = bytearray(1 << 30)", "")
    assert (fault(hogged).blame, fault(hogged).why) == ("memory", "reward_fn ran out of memory")
    assert isinstance(after, Scored)


def _calls(box: Open, number: int) -> None:
    """Score `number` jobs, a tenth of which hang; look for what they leave behind."""
    pool = box(time_limit_s=0.25)
    look = """
got['zombies'] = float(sum(open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[0] == 'Z'
                           for p in os.listdir('/proc') if p.isdigit()))
got['fds'] = float(len(os.listdir('/proc/self/fd')))
got['files'] = float(len(os.listdir('.')) + len(os.listdir('/tmp')))
"""
    hang = "open('x', 'w').write('x'); subprocess.Popen(['sleep', '99'], start_new_session=True); time.sleep(99)"
    pool.pool.limit(20.0)
    first = pool.score(look)
    ours = len(os.listdir("/proc/self/fd"))
    pool.pool.limit(0.25)
    fine = "open('x', 'w').write('x')"
    some = [hang if one % 10 == 0 else fine for one in range(100)]
    outcomes = [outcome for _ in range(number // 100) for outcome in pool.score(*some)]
    late = [outcome for outcome in outcomes if not isinstance(outcome, Scored)]
    assert {fault(outcome).blame for outcome in late} == {"time"}
    assert number // 10 <= len(late) <= number // 5  # a machine under load may be late itself
    pool.pool.limit(20.0)
    last = pool.score(look)
    before, after = (one.rewards for one in first + last if isinstance(one, Scored))
    assert before["zombies"] == 0.0
    assert after == before
    assert len(os.listdir("/proc/self/fd")) == ours


def test_many_calls_leave_no_zombie_no_descriptor_and_no_file(box: Open) -> None:
    """A tenth of them hang, with a child in a session of its own."""
    _calls(box, 100)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_calls_leave_no_zombie_no_descriptor_and_no_file(box: Open) -> None:
    """The same for long."""
    _calls(box, 10_000)


PARENT = """
import os, pathlib, select, signal, sys, time
from midflight.services.reward import Job, Pool, Spec
hang = "import os, signal\\ndef reward_fn(m, a):\\n  if os.fork() == 0: os.setsid()\\n  signal.pause()\\n"
pathlib.Path("rewards.py").write_text(hang)
pool = Pool(Spec(pathlib.Path("rewards.py"), scratch=pathlib.Path("."), level=sys.argv[1]))
poller = select.poll()
poller.register(pool.fileno())
pool.submit(Job(1, [], None))
while not pool.busy:
    pool.tick(time.monotonic())
    poller.poll(100)
def inside(pid):
    children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    return [pid, *(one for child in children for one in inside(int(child)))]
while len(found := inside(pool.pids[0])) < 4: pass
print(*found, flush=True)
signal.pause()
"""


def test_nothing_outlives_a_killed_service(tmp_path: Path, level: str) -> None:
    """SIGKILL to the service ends keeper, PID 1, the call, and what it put into a session of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, level],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".pkg")},
    ) as process:
        assert process.stdout is not None
        deaths = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
        for death in deaths:
            assert select.select([death], [], [], 20.0)[0], "something outlived the service"
            os.close(death)


def test_a_user_without_privileges_has_the_same_sandbox(tmp_path: Path, level: str) -> None:
    """The service need not be root. As root, this test becomes a user who can read what it needs."""
    tmp_path.chmod(0o777)
    script = f"""
import os, sys, tempfile
sys.path += [{str(ROOT / "tests")!r}, {str(ROOT / ".pkg")!r}]
from pathlib import Path
from midflight.services.reward.sandbox.enter import drop_root, readable
needed = [*sys.path, sys.prefix, sys.base_prefix, {str(ROOT)!r}, {str(tmp_path)!r}]
if os.getuid() == 0: drop_root(readable(needed, network=False))
from support.sandbox_bench import ProgramFault, Sandbox
box = Sandbox(Path({str(tmp_path)!r}), {level!r})
folder = tempfile.TemporaryDirectory(dir="/var/tmp")
mine = Path(folder.name) / "mine"
mine.write_text("")
look = "got['pids'] = float(len([p for p in os.listdir('/proc') if p.isdigit()]))"
marks = [f"os.chmod({{str(mine)!r}}, 0)", f"os.utime({{str(mine)!r}}, (1, 1))"]
outcomes = box.score("open('/etc/passwd')", look, *marks)
print(os.getuid() != 0, outcomes, *[isinstance(one, ProgramFault) for one in outcomes[2:]])
box.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("True [ProgramFault(blame='raised'"), done.stderr
    assert "Scored(rewards={'pids': 2.0}" in done.stdout
    assert done.stdout.endswith("True True\n"), done.stdout  # nor does it change the modes and times of its files


@pytest.mark.parametrize("network", [True, False])
def test_the_network_is_there_only_on_demand(box: Open, network: bool) -> None:
    """For a reward_fn that asks a served model; unix sockets stay closed."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"socket.create_connection(('127.0.0.1', {port}), 5)"
        outcomes = box(network=network).score(connect, "socket.socket(socket.AF_UNIX)", "socket.socketpair()")
    assert [isinstance(outcome, Scored) for outcome in outcomes] == [network, False, True]


def test_the_ladder_goes_down_only_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrusted code is refused where no sandbox works, with what to do; trusted code runs in warm processes."""
    monkeypatch.setattr(ladder, "missing", lambda level, **_: "" if level == "namespaces" else "is not installed")
    assert ladder.chosen("auto", trusted=False) == "namespaces"
    assert ladder.chosen("auto", trusted=True) == "rlimits"
    with pytest.raises(UserMistake, match="`isolation: bwrap` does not work here: is not installed"):
        ladder.chosen("bwrap", trusted=True)
    monkeypatch.setattr(ladder, "missing", lambda level, **_: "is not installed")
    with pytest.raises(UserMistake, match=r"bwrap: is not installed.*install bubblewrap.*trusted: true"):
        ladder.chosen("auto", trusted=False)


WITHOUT_NAMESPACES = """
import json
from midflight.kernel.cli.doctor import sandbox
from midflight.services.reward.sandbox import ladder, libc, seccomp
if not closed_bwrap: libc.no_new_privileges(); seccomp.install(network=True)  # as a container's filter does
print(json.dumps([[fine, text] for _, fine, text in sandbox()]))
"""


@pytest.mark.parametrize("closed_bwrap", [True, False], ids=["no bubblewrap", "no namespaces"])
def test_the_doctor_says_what_is_missing_by_trying(closed_bwrap: bool) -> None:
    """One level is enough; where none works, it says what to do."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".pkg"), **({"PATH": "/nowhere"} if closed_bwrap else {})}
    script = f"{closed_bwrap = }\n{WITHOUT_NAMESPACES}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    (_, bwrap), (fine, namespaces), *none = json.loads(done.stdout)
    if closed_bwrap:
        assert bwrap == "bwrap does not work: bubblewrap is not installed (apt-get install bubblewrap)"
    else:
        assert not fine
        assert "namespaces does not work: " in namespaces
        assert ladder.REMEDY in none[0][1]


def test_the_configuration_names_what_may_be_trusted(tmp_path: Path) -> None:
    """Files of ours are; others need `trusted`, and it never comes with them from a base topology of ours."""
    file = tmp_path / "rewards.py"
    file.write_text("def reward_fn(messages, answer): return 1\n")
    assert not RewardConfig(kind="reward", file=str(file)).vouched
    assert RewardConfig(kind="reward", file=str(file), trusted=True).vouched
    assert RewardConfig(kind="reward", file=str(ROOT / "configs/rewards/exact.py")).vouched
    with pytest.raises(ValidationError, match="set trusted: true if you vouch"):
        RewardConfig(kind="reward", file=str(file), isolation="rlimits")
    with pytest.raises(ValidationError, match="isolation: remote and remote: URL go together"):
        RewardConfig(kind="reward", file=str(file), isolation="remote")
