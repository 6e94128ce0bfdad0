"""The attacks of the design's list (faults.md B3, T31), each at every level that claims to stop it.

An attack raises BrokeOut when it reaches what it must not. It is contained when it is refused, or blamed for what it
did; and the next call, in the same sandbox, is scored.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sandbox_bench import Sandbox, fault

from midflight.services.reward import Job, Scored
from midflight.services.reward.sandbox.levels import LOCAL, SEALED

EACH_FD = "for fd in map(int, os.listdir('/proc/self/fd')):\n  try: {}\n  except OSError: pass\n"
REFUSED = {
    "read /etc/shadow": "open('/etc/shadow').read()",
    "read a world-readable file": "open('/etc/hostname').read()",
    "list a folder of the host": "os.listdir('/var')",
    "read the host's secret": "open(SECRET).read()",
    "write a world-writable file of the host": "open(OPEN_FILE, 'a').write('x')",
    "write outside": "open('/var/tmp/broke_out', 'w')",
    "write beside its folder": "open('/tmp/import/x', 'w')",
    "write to the interpreter": "open(os.__file__, 'a')",
    "tcp": "socket.create_connection(('127.0.0.1', TCP), 2)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
    "abstract unix socket": "socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
    "unix socket by path": "socket.socket(socket.AF_UNIX).connect(SOCKET)",
    "unix socket by a datagram pair": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', SOCKET)",
    "netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "signal to a process of the host": "os.kill(HOST, 9)",
    "signal to PID 1": "os.kill(1, signal.SIGINT)",
    "limits of PID 1": "resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "environment of PID 1": "open('/proc/1/environ').read()",
    "descriptors of PID 1": "os.listdir('/proc/1/fd')",
    "memory of PID 1": "open('/proc/1/mem', 'r+b')",
    "memory of the call from its child": "peek(f'/proc/{os.getpid()}/mem')",
    "descriptors of the call from its child": "peek(f'/proc/{os.getpid()}/fd/0')",
    "symlink out of its folder": "os.symlink('/etc/hostname', 'link'); open('link').read()",
    "hard link out of its folder": "os.link('/etc/hostname', 'link'); open('link').read()",
    "niceness of all processes of its user": "os.setpriority(os.PRIO_USER, 0, 5)",
    "raised limit": "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "become root": "os.setuid(0)",
}
CALLS = {
    "ptrace": "libc.ptrace(0, 0, 0, 0)",
    "user namespace": "libc.unshare(0x10000000)",
    "mount namespace by clone": "libc.syscall(56 if X86 else 220, 0x20000 | 17, 0, 0, 0, 0)",
    "clone3": "libc.syscall(435, ctypes.create_string_buffer(88), 88)",
    "mount": "libc.mount(b'none', b'/tmp/call', b'tmpfs', 0, None)",
    "bpf": "libc.syscall(321 if X86 else 280, 0, 0, 0)",
    "io_uring": "libc.syscall(425, 1, ctypes.create_string_buffer(128))",
    "process_vm_readv": "libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
    "pidfd_getfd": "libc.syscall(438, os.pidfd_open(os.getpid()), 1, 0)",
    "System V shared memory": "libc.shmget(7, 4096, 0o1600)",
    "System V message queue": "libc.msgget(7, 0o1600)",
    "System V semaphores": "libc.semget(7, 1, 0o1600)",
    "POSIX message queue": "libc.syscall(240 if X86 else 180, b'queue', 0o102, 0o600, None)",
    "I/O priority of all processes of its user": "libc.syscall(251 if X86 else 30, 3, 0, 0x6000)",
    "keyctl": "libc.syscall(250 if X86 else 219, 0, 0, 0, 0, 0)",
}
LIBC = """
import ctypes, platform
X86, libc = platform.machine() == "x86_64", ctypes.CDLL(None, use_errno=True)
if {} != -1: broke_out()
if ctypes.get_errno() not in (1, 38): raise AssertionError(ctypes.get_errno())
raise PermissionError
"""
WRAP = """
class BrokeOut(Exception): pass
def broke_out(): raise BrokeOut
def peek(path):
    look = f"import sys\\ntry: open({path!r}, 'rb')\\nexcept PermissionError: sys.exit(7)"
    if subprocess.run([sys.executable, "-c", look]).returncode == 7: raise PermissionError
try:
{}
except (OSError, ValueError): contained = True
else: raise BrokeOut
"""


class Host:
    """What an attack must not reach: sockets that listen, a file with a secret, one that anybody may write."""

    def __init__(self, folder: Path, closing: contextlib.ExitStack) -> None:
        folder.chmod(0o755)
        self.names: dict[str, object] = {"HOST": os.getpid(), "ABSTRACT": f"\0midflight-{os.getpid()}"}
        self.names |= {"SECRET": str(folder / "secret"), "OPEN_FILE": str(folder / "open")}
        self.names |= {"SOCKET": str(folder / "socket")}
        for name, mode in (("secret", 0o644), ("open", 0o666)):
            (folder / name).write_text("")
            (folder / name).chmod(mode)
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, self.names["ABSTRACT"]),
            (socket.AF_UNIX, socket.SOCK_DGRAM, self.names["SOCKET"]),
        ):
            ear = closing.enter_context(socket.socket(family, kind))
            ear.bind(address)  # type: ignore[arg-type]
            if kind == socket.SOCK_STREAM:
                ear.listen()
            if family == socket.AF_INET:
                self.names["TCP" if kind == socket.SOCK_STREAM else "UDP"] = ear.getsockname()[1]
        os.chmod(str(self.names["SOCKET"]), 0o777)

    def code(self, attack: str) -> str:
        """An attack, which knows where to find all that."""
        known = "\n".join(f"{name} = {value!r}" for name, value in self.names.items())
        return known + WRAP.replace("{}", "\n".join("  " + line for line in attack.splitlines()))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with contextlib.ExitStack() as closing:
        yield Host(tmp_path_factory.mktemp("host"), closing)


def _warm(level: str, factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    opened = Sandbox(factory.mktemp("box"), level, memory_bytes=512 << 20)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=SEALED)
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One warm sandbox of each level for all the attacks, one after the other."""
    yield from _warm(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=LOCAL)
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The same, the level of trusted code included: it claims to limit what one process takes."""
    yield from _warm(request.param, tmp_path_factory)


@pytest.mark.parametrize("attack", REFUSED)
def test_what_reaches_out_is_refused(sandbox: Sandbox, host: Host, attack: str) -> None:
    (outcome,) = sandbox.score(host.code(REFUSED[attack]))
    assert isinstance(outcome, Scored), outcome


@pytest.mark.parametrize("attack", CALLS)
def test_system_calls_out_of_the_sandbox_are_refused(sandbox: Sandbox, host: Host, attack: str) -> None:
    (outcome,) = sandbox.score(host.code(LIBC.format(CALLS[attack])))
    assert isinstance(outcome, Scored), outcome


def test_the_host_can_be_reached_without_a_sandbox(tmp_path: Path, host: Host) -> None:
    """The control: the same attacks break out where nothing contains them."""
    free = Sandbox(tmp_path, "rlimits")
    attacks = ("read a world-readable file", "read the host's secret", "tcp", "udp", "abstract unix socket")
    for outcome in free.score(*(host.code(REFUSED[attack]) for attack in attacks)):
        assert "BrokeOut" in fault(outcome).why
    free.close()


@pytest.mark.parametrize(
    ("hog", "blame"),
    [
        ("x = bytearray(2 << 30)", "memory"),
        ("with open('big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))", "raised"),
        ("while True: sys.stdout.write('x' * (1 << 20))", "raised"),
        ("while True: pass", "time"),
        ("time.sleep(60)", "time"),
        ("signal.signal(signal.SIGABRT, signal.SIG_IGN)\nwhile True: pass", "time"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "time"),
        ("os._exit(0)", "exit"),
        ("import ctypes\nctypes.string_at(0)", "exit"),
        ("f = lambda d: [d, f(d + 1)]\nf(0)", "raised"),
        ("held = [os.open('/dev/null', 0) for _ in range(9999)]", "raised"),
    ],
)
def test_what_takes_too_much_is_blamed_for_it(limited: Sandbox, hog: str, blame: str) -> None:
    """It has a verdict of its own, and the next call is scored."""
    limited.pool.limit(1.5 if blame == "time" else 20.0)
    blamed, after = limited.score(hog, "")
    limited.pool.limit(20.0)
    assert fault(blamed).blame == blame, blamed
    assert isinstance(after, Scored)


STORM = """
try:
    while True:
        if os.fork() == 0:
            while True: time.sleep(1)
except OSError: got['refused'] = 1.0
"""
SURVIVOR = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: time.sleep(1)
    os._exit(0)
"""


@pytest.mark.parametrize("left", [STORM, SURVIVOR, "os.fork()", "os.popen('sleep 1000')"])
def test_no_process_outlives_its_call(sandbox: Sandbox, left: str) -> None:
    """Not even one in a session of its own: the next call is alone with PID 1, which has no other child."""
    alone = "got['others'] = float(len([name for name in os.listdir('/proc') if name.isdigit()]) - 2)"
    first, after = sandbox.score(left, alone)
    assert isinstance(first, Scored), first
    assert isinstance(after, Scored)
    assert after.rewards == {"others": 0.0}


@pytest.mark.parametrize(
    "left",
    [
        "open('x', 'w').write('x')",
        "os.makedirs('a/b'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
        "for _ in range(1500): os.mkdir('d'); os.chdir('d')",
        "os.symlink('/', 'root'); os.symlink('..', 'up'); os.mkfifo('fifo')",
        "for n in range(1_000_000): os.close(os.open(str(n), os.O_CREAT))",
        "open('/dev/shm/x', 'w').write('x')",
    ],
)
def test_no_file_outlives_its_call(sandbox: Sandbox, left: str) -> None:
    """Whatever the tree looks like, the next call finds an empty folder."""
    sandbox.pool.limit(4.0)
    _, after = sandbox.score(left, "got['files'] = float(len(os.listdir('.') + os.listdir('/dev/shm')))")
    sandbox.pool.limit(20.0)
    assert isinstance(after, Scored), after
    assert after.rewards == {"files": 0.0}


LOOK = """
def seen(path):
    found = os.stat(path)
    try: names = os.listxattr(path)
    except OSError: names = []
    return found.st_mode, sorted(found.st_mtime_ns == n for n in (0, 10**9)), sorted(names), sorted(os.listdir(path))
found = str([seen(path) for path in ('.', '/tmp', '/tmp/import', '/dev/shm')])
got['like'] = float(int.from_bytes(found.encode(), 'big') % 2**52)
"""


@pytest.mark.parametrize("path", [".", "/dev/shm", "/tmp", "/tmp/import"])
@pytest.mark.parametrize(
    "mark", ["os.chmod(PATH, 0o711)", "os.utime(PATH, (1, 1))", "os.setxattr(PATH, 'user.x', b'x')"]
)
def test_no_mark_on_a_folder_outlives_its_call(sandbox: Sandbox, path: str, mark: str) -> None:
    """Modes, times and attributes would tell the next call what this one found."""
    marks = f"PATH = {path!r}\ntry: {mark}\nexcept OSError: pass"
    before, _, after = sandbox.score(LOOK, marks, LOOK)
    assert isinstance(before, Scored), before
    assert isinstance(after, Scored), after
    assert after.rewards == before.rewards


FRAME = (
    'import struct\nbody = b\'{"rewards": {"reward": 9}, "state": {}, "seconds": 0}\'\n'
    "forged = struct.pack('<cIQ', b'S', len(body), 0) + body\n"
)


@pytest.mark.parametrize(
    ("forge", "blame"),
    [
        ("for fd in (1, 2): os.write(fd, forged)", None),
        (EACH_FD.format("os.write(fd, forged)"), "returned"),
        (EACH_FD.format("os.write(fd, bytes(16) + forged)"), "returned"),
        (EACH_FD.format("os.write(fd, bytes(64))"), "returned"),
        (EACH_FD.format("os.close(fd)"), "exit"),
        ("subprocess.run([sys.executable, '-c', SEARCH], check=True)", None),
    ],
)
def test_a_verdict_cannot_be_forged(sandbox: Sandbox, forge: str, blame: str | None) -> None:
    """Not on what is printed, not on the call's own channel, and a child process has no way to it."""
    search = (
        FRAME
        + "import os\n"
        + (
            "pid = os.getppid()\n"
            "try: names = os.listdir(f'/proc/{pid}/fd')\n"
            "except OSError: names = []\n"
            "assert not names\n"
        )
        + EACH_FD.format("os.write(fd, forged)")
    )
    outcome, after = sandbox.score(f"SEARCH = {search!r}\n{FRAME}{forge}", "")
    if blame is None:
        assert isinstance(outcome, Scored), outcome
        assert outcome.rewards == {"reward": 1.0}
    else:
        assert fault(outcome).blame == blame
    assert isinstance(after, Scored)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("S", "[" * 100_000),
        ("S", '{"rewards": {"reward": 1' + "0" * 400 + '}, "state": {}, "seconds": 0}'),
        ("S", '{"rewards": {"reward": Infinity}, "state": {}, "seconds": 0}'),
        ("S", '{"rewards": {}, "state": {}, "seconds": 0}'),
        ("A", '{"messages": [{"role": "assistant", "content": ""}], "state": {}, "seconds": 0}'),
        ("A", '{"messages": [], "state": {}, "seconds": 0}'),
        ("F", '{"blame": {}, "why": "", "tail": "", "seconds": 0}'),
        ("F", "\udc80"),
    ],
)
def test_a_forged_report_is_refused_by_its_reader(tmp_path: Path, kind: str, body: str) -> None:
    """At the level that cannot keep its channel from trusted code, what is written there is checked all the same."""
    box = Sandbox(tmp_path, "rlimits")
    forge = f"""
import struct
body = {body!r}.encode(errors="surrogateescape")
frame = struct.pack("<cIQ", {kind!r}.encode(), len(body), 0) + body
{EACH_FD.format("os.write(fd, frame)")}
"""
    outcome, after = box.score(forge, "")
    assert fault(outcome).blame == "returned"
    assert isinstance(after, Scored)
    box.close()


@pytest.mark.alone
@pytest.mark.parametrize("level", SEALED)
def test_a_fork_storm_does_not_starve_another_sandbox(tmp_path: Path, level: str) -> None:
    """While one holds all the processes it may have, busy, the other answers."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    stormy, calm = Sandbox(tmp_path / "a", level, time_limit_s=20.0), Sandbox(tmp_path / "b", level, time_limit_s=20.0)
    calm.score("")
    stormy.score("")
    storm = STORM.replace("while True: time.sleep(1)", "while True: pass") + "\nwhile True: pass"
    stormy.pool.submit(Job(10**6, [], storm))
    began = time.monotonic()
    outcomes = calm.score(*["if os.fork() == 0: os._exit(0)\nos.wait()"] * 20)
    assert all(isinstance(outcome, Scored) for outcome in outcomes), outcomes
    assert time.monotonic() - began < 20.0
    stormy.close()
    calm.close()


@pytest.mark.parametrize("level", SEALED)
def test_everything_inside_dies_with_the_pool(tmp_path: Path, level: str) -> None:
    """A call in the middle of its work, in a session of its own, ends with `close`."""
    box = Sandbox(tmp_path, level)
    box.score("")
    box.pool.submit(Job(9, [], SURVIVOR + "\ntime.sleep(1000)"))
    select.select([box.pool.fileno()], [], [], 5.0)
    box.pool.on_readable(time.monotonic())
    inside = set(_inside(box.pool.pids[0]))
    assert inside
    box.close()
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]


def _inside(keeper: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        found += [int(child), *_inside(int(child))]
    return found
