"""The ticket to a group: kept from process to process, for its owner alone; and the meeting behind it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port
from midflight.messages.control import Drain
from midflight.messages.group import GroupHost, GroupPlace
from midflight.messages.sockets import Endpoint, new_key
from midflight.messages.wire import Sealer, decode, dump
from midflight.services.learner.group.meeting import Ground, Meeting
from midflight.services.learner.group.ticket import Ticket, interface_of

GROUND = Ground("demo-1", "/nowhere", "learner", {"config.json": "{}"})
WAIT_MS = 10_000
KEY = "LvdI!LRxl&qB%}w{f<P2uf4Sbm<R{2TV*p-f6Mke"
"""Made by `new_key`; always the same, for the names of tests have it."""


def test_a_ticket_is_made_once_and_kept(tmp_path: Path) -> None:
    """Another address keeps the key; nobody else may read it."""
    path = tmp_path / "learner.ticket"
    made = Ticket.kept(path, None)
    assert Ticket.kept(path, None) == Ticket.read(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert Ticket.kept(path, "127.0.0.1") == Ticket("127.0.0.1:" + made.address.rpartition(":")[2], made.key)
    assert Ticket.kept(path, "127.0.0.1:4711") == Ticket("127.0.0.1:4711", made.key)
    path.chmod(0o640)
    with pytest.raises(UserMistake, match="chmod 600"):
        Ticket.read(path)


def spoilt(address: str, key: str = KEY) -> str:
    """A ticket's text; with a good key if none is given."""
    return json.dumps({"address": address, "key": key})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"address": "a:1"}',
        spoilt("a:1", "short"),
        spoilt("a:1", "\u00e9" * 40),
        spoilt("a:1", "~" * 40),
        spoilt("a:1", "#" * 40),
        spoilt("a:\u0664\u0667"),
        spoilt("a:99999999"),
        spoilt("a:0"),
        spoilt("a" * 300 + ":1"),
        spoilt("a b:1"),
    ],
)
def test_what_is_no_ticket_is_refused_by_name(tmp_path: Path, text: str) -> None:
    """With the file's name, and what to do: another thing for the host whose own file it is."""
    path = tmp_path / "x.ticket"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UserMistake, match=r"x\.ticket: not a ticket to a learner's group; copy"):
        Ticket.read(path)
    with pytest.raises(UserMistake, match=r"x\.ticket: not a ticket .* remove it: a new one is made, and other hosts"):
        Ticket.kept(path, None)


def test_a_host_that_can_be_none_is_told() -> None:
    """A part between dots that is too long for any name server."""
    with pytest.raises(UserMistake, match="no such host is known here"):
        _ = Ticket("a" * 70 + ".b:1", new_key()).url


def test_a_ticket_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Starting again cannot mend it."""
    with pytest.raises(UserMistake, match=r"cannot be written: .*; set `ticket` to"):
        Ticket.kept(Path("/proc/nope/x.ticket"), None)
    with pytest.raises(UserMistake, match="set `meet` to host or host:port"):
        Ticket.kept(tmp_path / "x.ticket", "here:99999")
    assert not list(tmp_path.iterdir())


def test_the_interface_to_an_address_is_found() -> None:
    """It is for gloo and NCCL, which else guess by the host's name."""
    assert interface_of("127.0.0.1") == "lo"


@pytest.fixture
def ticket() -> Ticket:
    """To a port of this host."""
    return Ticket(f"127.0.0.1:{free_port()}", new_key())


@pytest.fixture
def meeting(ticket: Ticket) -> Iterator[Meeting]:
    """Of two ranks, one of which is elsewhere."""
    one = Meeting(ticket, GROUND, 2, 1, 1, False)
    yield one
    one.close(over=True)


class Guest:
    """A socket of another host's."""

    def __init__(self, ticket: Ticket, key: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._end = Endpoint(self._context, "dealer", ticket.url, "elsewhere#7", key)
        self._sealer = Sealer("elsewhere#7")

    def says(self, message: GroupHost | Drain) -> None:
        """One message."""
        self._end.send(self._sealer.seal(message.KIND, dump(message))[1])

    def hears(self, wait_ms: int = WAIT_MS) -> GroupPlace | None:
        """The next answer."""
        if not self._end.socket.poll(wait_ms):
            return None
        (incoming,) = self._end.drain(1)
        message = decode(incoming.frames).message
        assert isinstance(message, GroupPlace)
        return message

    def close(self) -> None:
        """Without a word."""
        self._end.close()
        self._context.term()


def test_a_guest_gets_its_place_and_a_stranger_is_not_heard(ticket: Ticket, meeting: Meeting) -> None:
    """Only who has the key is a guest; what a guest says that is not for a meeting has no effect."""
    told: list[str] = []
    stranger, guest = Guest(ticket, new_key()), Guest(ticket, ticket.key)
    me = GroupHost(host="b", version=meeting.roll.version, torch=meeting.roll.torch)
    try:
        stranger.says(me)
        guest.says(Drain(deadline_s=0.0, why="no"))
        with pytest.raises(UserMistake, match=r"1 of the group's 2 ranks have not come .*midflight join"):
            meeting.gather(1.0, told.append)
        assert told[0] == "1 of 2 ranks from other hosts (there: nobody)"
        assert stranger.hears(0) is None
        guest.says(me)
        place = guest.hears()
        assert place
        assert (place.first, place.count, place.world, place.files) == (1, 1, 2, GROUND.files)
        assert place.generation == meeting.generation
        meeting.gather(1.0, told.append)
        guest.says(me.model_copy(update={"generation": place.generation}))
        assert (again := guest.hears())
        assert again.files == {}
        guest.says(me.model_copy(update={"leaving": "enough"}))
        assert guest.hears()
        assert meeting.ends() == {1: "host b leaves: enough"}
    finally:
        stranger.close()
        guest.close()


def test_no_two_groups_are_the_same_and_the_next_meets_at_the_same_place(ticket: Ticket) -> None:
    """A guest that still runs ranks of an older group is told to run none."""
    first = Meeting(ticket, GROUND, 2, 1, 1, False)
    first.close(over=False)
    second = Meeting(ticket, GROUND, 3, 1, 1, False)
    guest = Guest(ticket, ticket.key)
    try:
        old = {"generation": first.generation}
        guest.says(GroupHost(host="b", version=second.roll.version, torch=second.roll.torch).model_copy(update=old))
        place = guest.hears()
        assert place
        assert (place.generation, place.said) == ("", "1 of 3 ranks are still to come")
        assert second.generation != first.generation
        began = time.monotonic()
        second.close(over=True)
        assert time.monotonic() >= began
    finally:
        guest.close()


def test_an_address_of_somebody_else_is_refused_with_what_to_do() -> None:
    """The learner can only listen at its own."""
    with pytest.raises(UserMistake, match="set `meet`"):
        Meeting(Ticket("192.0.2.1:4711", new_key()), GROUND, 2, 1, 1, False)
