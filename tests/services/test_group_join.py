"""`midflight join` against a real meeting: how it ends. That its ranks run is in tests/e2e/test_hosts.py."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.kernel.cli.main import main
from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port
from midflight.messages.sockets import new_key
from midflight.services.learner.group import join as module
from midflight.services.learner.group.join import FAILED, OK, Joiner, Offer, found
from midflight.services.learner.group.meeting import Ground, Meeting
from midflight.services.learner.group.ticket import Ticket

GROUND = Ground("demo-1", "/nowhere", "learner", {"config.json": "{}"})
WORLD = 3
"""One host more than comes in these tests, so that nobody has to run a rank."""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """As they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ticket() -> Ticket:
    """To a port of this host."""
    return Ticket(f"127.0.0.1:{free_port()}", new_key())


def arrived(lacking: str) -> None:
    """Ends a wait when somebody has come."""
    if "there: nobody" not in lacking:
        raise StopIteration


def joined(ticket: Ticket, offer: Offer, said: list[str], wait_s: float = 30.0) -> int:
    """Its exit code."""
    return Joiner(ticket, offer, None, wait_s, said.append).run()


@pytest.mark.parametrize("over", [True, False])
def test_it_ends_with_the_run(ticket: Ticket, over: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once when the learner has trained to its end; when it only leaves, after a while in which none comes back."""
    monkeypatch.setattr(module, "LEFT_S", 0.2)
    said: list[str] = []
    meeting = Meeting(ticket, GROUND, WORLD, 1, 1, False)

    def leave() -> None:
        with contextlib.suppress(StopIteration):
            meeting.gather(30.0, arrived)
        meeting.close(over)

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    assert joined(ticket, Offer(), said) == OK
    leaving.join()
    assert said[1] == "1 of 3 ranks are still to come"
    assert ("trained to its end" if over else "the run is over") in said[-1]


@pytest.mark.parametrize("words", ["--ranks -2", "--ranks x", "--wait nan", "--wait -1", "--wait x"])
def test_what_can_be_no_number_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the ticket is looked for."""
    with pytest.raises(SystemExit) as end:
        main(["join", "no.ticket", *words.split()])
    assert end.value.code == 2
    assert "0 or more" in capsys.readouterr().err


def test_without_a_learner_it_gives_up(ticket: Ticket) -> None:
    """After `--wait`."""
    said: list[str] = []
    assert joined(ticket, Offer(), said, wait_s=0.3) == FAILED
    assert said[-1] == f"no learner at {ticket.address} for 0.3 s, or its key is another: copy the ticket anew"


def test_what_does_not_fit_is_refused_with_what_to_do(ticket: Ticket) -> None:
    """It does not try again."""
    meeting = Meeting(ticket, GROUND, WORLD, 1, 1, False)
    with pytest.raises(UserMistake, match=r"it brings 7 ranks, and of this group's 3 only 2 are for other hosts"):
        joined(ticket, Offer(ranks=7), [])
    meeting.close(over=True)


def test_a_ticket_is_waited_for(tmp_path: Path) -> None:
    """The learner may start last; but not for ever."""
    said: list[str] = []
    with pytest.raises(UserMistake, match=r"no ticket after 0\.1 s"):
        found(tmp_path / "no.ticket", 0.1, said.append)
    assert said == [f"waits for the ticket {tmp_path / 'no.ticket'}"]


def test_torchrun_brings_one_rank_a_process() -> None:
    """Whatever `--ranks` says."""
    assert Offer.here(3, {}) == Offer(3)
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert Offer.here(0, torchrun) == Offer(1, rank=5, world=8, local=1)
