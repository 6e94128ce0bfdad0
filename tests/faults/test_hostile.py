"""Bytes and peers that mean harm: refused, counted, and nobody restarts."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.chaos_run import BATCH, SERVICES, ChaosRun

from midflight.kernel.client import Client
from midflight.messages.catalogue import CATALOGUE
from midflight.messages.control import Hello, Refused, Status, StatusGet
from midflight.messages.events import Events, EventsGet
from midflight.messages.samples import Commit, LedgerGet, LedgerStatus
from midflight.messages.wire import Sealer

pytestmark = pytest.mark.alone

ATTACK = 3000
ATTACKERS = 100


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")


def hostile(rng: random.Random, identity: str) -> list[bytes]:
    """One message that must not be understood: each kind of damage in turn."""
    kind = rng.choice(sorted(CATALOGUE))
    sealer = Sealer(identity)
    frames = sealer.seal(kind, CATALOGUE[kind].EXAMPLE)[1]
    match rng.randrange(7):
        case 0:
            return [bytes([frames[0][0] + 1]) + frames[0][1:], *frames[1:]]
        case 1:
            return [frames[0], rng.randbytes(rng.randrange(1, 400))]
        case 2:
            return [rng.randbytes(rng.randrange(1, 60)), frames[1]]
        case 3:
            return [frames[0], b"\x91" * 3000]
        case 4:
            return [b"x"] * 40
        case 5:
            return [frames[0], b"\x81\xa1\xff\xa1\xfe"]
        case _:
            return Sealer("rollout-0#1").seal(kind, CATALOGUE[kind].EXAMPLE)[1]


def attack(run: ChaosRun, port: str, rng: random.Random) -> int:
    """Send ATTACK hostile messages to a socket, from many names; -> how many."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    url = Client(run.dir).run["endpoints"][port]
    for number in range(ATTACKERS):
        identity = f"evil-{port}-{number}#1"
        sock = context.socket(zmq.DEALER)
        sock.identity, sock.linger = identity.encode(), 5000
        sock.connect(url)
        for _ in range(ATTACK // ATTACKERS):
            sock.send_multipart(hostile(rng, identity))
        sock.close()
    context.term()
    return ATTACK


def test_hostile_messages_while_working(tmp_path: Path) -> None:
    """Faults 14 and 15: 3,000 to the kernel and 3,000 to the ledger; all counted, nobody restarts, nothing is lost."""
    rng = random.Random(14)
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.6}}) as run:
        run.until("trained", BATCH)
        sent = {port: attack(run, port, rng) for port in ("ctl", "data")}
        with Client(run.dir) as client:
            refused = {"ctl": 0, "data": 0}
            while refused != sent:
                assert not run.over(0.05), f"counted {refused} of {sent}"
                status, ledger = client.ask("ctl", StatusGet()).message, client.ask("data", LedgerGet()).message
                assert isinstance(status, Status)
                assert isinstance(ledger, LedgerStatus)
                counters = status.counters
                bad = [int(str(n)) for name, n in counters.items() if name.startswith("bad.") or name == "ignored"]
                refused = {"ctl": sum(bad), "data": int(str(ledger.stats["refused_messages"]))}
            assert len([name for name in counters if name.startswith("bad.")]) >= 6, counters
        account = run.account(within_s=60)
        exits = (run.dir / "logs" / "warden.out").read_text().count("ended with")
    assert not account.problems, account
    assert exits == len(SERVICES) + 1 + 1, "only the ends of six services and the kernel, and the warden's own"


def test_a_name_does_not_make_a_service(tmp_path: Path) -> None:
    """Fault 16: a peer under a service's name with another process id is refused; the real one goes on.

    Nor may a peer of no kind say to the ledger what only the learner says.
    """
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.5}}) as run:
        run.until("trained", BATCH)
        with Client(run.dir) as thief, Client(run.dir) as client:
            thief.identity, thief._sealer.source = "rollout-0#1", "rollout-0#1"
            hello = Hello(proto_min=1, proto_max=1, pid=os.getpid(), role="service", version="0", knobs=[])
            answer = thief.ask("ctl", hello).message
            assert isinstance(answer, Refused)
            assert answer.code == "identity"
            commit = client.ask("data", Commit(step=1, digest="0" * 32)).message
            assert isinstance(commit, Refused)
            assert commit.code == "role"
        account = run.account(within_s=60)
    assert not account.problems, account


CLIENT = """
import os, signal, sys
from pathlib import Path
from midflight.kernel.client import Client
from midflight.messages.control import Hello
client = Client(Path(sys.argv[1]))
client.ask("ctl", Hello(proto_min=1, proto_max=1, pid=os.getpid(), role="client", version="0", knobs=[]))
print("attached", flush=True)
signal.pause()
"""


def test_clients_come_and_die(tmp_path: Path) -> None:
    """Fault 29: eight clients attach in mid-run and are killed; each finds the same history; the run does not care."""
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.7}}) as run:
        run.until("trained", BATCH)
        history: list[Any] = []
        for _ in range(8):
            child = subprocess.Popen([sys.executable, "-c", CLIENT, str(run.dir)], stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline() == b"attached\n"
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            with Client(run.dir) as client:
                page = client.ask("ctl", EventsGet(after=0)).message
                assert isinstance(page, Events)
                assert not page.gap
                assert page.events[: len(history)] == history
                assert [event.seq for event in page.events] == list(range(1, len(page.events) + 1))
                history = list(page.events)
        account = run.account(within_s=60)
    assert not account.problems, account
