"""The socket factory: every option is there for a loss that libzmq would otherwise hide."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from midflight.messages.sockets import HWM, Endpoint, Incoming, Role
from midflight.messages.wire import MAX_FRAMES

Make = Callable[..., Endpoint]
WAIT_MS = 5000


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes endpoints on one ipc path and closes them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[Endpoint] = []

    def endpoint(role: Role, identity: str = "") -> Endpoint:
        made.append(Endpoint(context, role, f"ipc://{tmp_path}/s.ipc", identity))
        return made[-1]

    yield endpoint
    for one in made:
        one.close()
    context.term()


def receive(endpoint: Endpoint) -> Incoming:
    """The next message, or a failure after five seconds."""
    assert endpoint.socket.poll(WAIT_MS)
    return next(endpoint.drain(1))


def test_router_says_when_a_peer_is_unknown(make: Make) -> None:
    """A plain ROUTER drops silently; ours returns False."""
    assert make("router").send([b"x"], "nobody#1") is False


def test_router_says_when_a_peer_is_full(make: Make) -> None:
    """A peer that sleeps costs the sender nothing but a False once its queue is full."""
    router, dealer = make("router"), make("dealer", "slow#1")
    dealer.send([b"hello"])
    receive(router)
    sent = 0
    while router.send([b"x" * 1000], "slow#1"):
        sent += 1
        assert sent < 10 * HWM
    assert sent >= HWM


def test_a_restarted_identity_takes_over(make: Make) -> None:
    """The new peer of a name gets the answers, not its dead predecessor."""
    router, old = make("router"), make("dealer", "a#1")
    old.send([b"1"])
    receive(router)
    new = make("dealer", "a#1")
    new.send([b"2"])
    receive(router)
    assert router.send([b"to the new one"], "a#1")
    assert receive(new).frames == [b"to the new one"]
    assert not old.socket.poll(0)


def test_the_peer_pid_is_known_on_ipc(make: Make) -> None:
    """The kernel checks a hello against the warden's table by the socket's own word."""
    import os

    router, dealer = make("router"), make("dealer", "a#1")
    dealer.send([b"x"])
    assert receive(router).pid == os.getpid()


def test_a_message_of_too_many_frames_is_not_collected(make: Make) -> None:
    """Neither HWM nor MAXMSGSIZE bounds the frames of one message; the reader does, and stays in step."""
    router, dealer = make("router"), make("dealer", "a#1")
    dealer.socket.send_multipart([b"y"] * 50_000)
    dealer.send([b"next"])
    assert len(receive(router).frames) == MAX_FRAMES + 1
    assert receive(router).frames == [b"next"]


def test_no_wake_up_is_lost_with_32_in_flight(make: Make) -> None:
    """An edge-triggered reader stalls at message 32; ours echoes two thousand."""
    router, dealer = make("router"), make("dealer", "a#1")
    poller = zmq.Poller()
    poller.register(router.socket, zmq.POLLIN)
    poller.register(dealer.socket, zmq.POLLIN)
    for _ in range(32):
        dealer.send([b"x"])
    echoed = 0
    while echoed < 2000:
        ready = dict(poller.poll(WAIT_MS))
        assert ready, f"stalled after {echoed}"
        if router.socket in ready:
            for incoming in router.drain(7):
                assert router.send(incoming.frames, incoming.sender)
        if dealer.socket in ready:
            for incoming in dealer.drain(5):
                echoed += 1
                dealer.send(incoming.frames)


def test_an_oversized_frame_cuts_its_sender_only(make: Make) -> None:
    """The second line of defence: the socket refuses what our own sender would never send."""
    router, bad, good = make("router"), make("dealer", "bad#1"), make("dealer", "good#1")
    bad.socket.send(bytes(3 << 20))
    good.send([b"fine"])
    assert receive(router).frames == [b"fine"]


def test_publisher_reaches_its_subscribers(make: Make) -> None:
    """XPUB to SUB; the join message of a subscriber tells the publisher that it listens."""
    xpub, sub = make("xpub"), make("sub")
    assert receive(xpub).frames == [b"\x01"]
    xpub.send([b"e", b"v"])
    assert receive(sub).frames == [b"e", b"v"]
