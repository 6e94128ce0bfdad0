"""The in-memory twin: the same seed gives the same run, and faults are as announced."""

from midflight.messages.memory import Network
from midflight.messages.sockets import Incoming


class Echo:
    """Answers everything; keeps a log of (time, sender, frames)."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name, self.log = network, name, list[tuple[float, bytes]]()

    def deliver(self, port: str, incoming: Incoming) -> None:
        """Log, and answer if we serve the port."""
        self.log.append((round(self.network.clock, 6), incoming.frames[0]))
        if incoming.sender:
            self.network.send(self.name, port, incoming.frames, incoming.sender)

    def turn(self, now: float) -> float:
        """A client speaks every 10 ms."""
        if self.name != "kernel#1":
            self.network.send(self.name, "ctl", [f"{self.name}@{now:.3f}".encode()])
        return 0.01


def play(seed: int, loss: float = 0.0, repeat: float = 0.0) -> tuple[Network, dict[str, Echo]]:
    """Two clients and a kernel for one virtual second."""
    network = Network(seed, {"ctl": "kernel#1"}, loss=loss, repeat=repeat)
    nodes = {name: Echo(network, name) for name in ("kernel#1", "a#1", "b#1")}
    for name, node in nodes.items():
        network.join(name, node)
    network.run(1.0)
    return network, nodes


def test_a_seed_repeats_a_run() -> None:
    """Same seed, same log; another seed, another order."""
    assert play(3)[1]["kernel#1"].log == play(3)[1]["kernel#1"].log
    assert play(3)[1]["kernel#1"].log != play(4)[1]["kernel#1"].log


def test_losses_and_repeats_happen_at_their_rates() -> None:
    """About 200 messages: none lost without loss, roughly half with 0.5, doubled with repeat 1."""
    plain, lossy, doubled = (len(play(1, *p)[1]["kernel#1"].log) for p in ((0.0, 0.0), (0.5, 0.0), (0.0, 1.0)))
    assert 196 <= plain <= 204
    assert 70 <= lossy <= 130
    assert doubled >= 2 * plain - 8


def test_a_crashed_node_hears_nothing_and_its_peer_is_told() -> None:
    """Sending to a dead peer returns False, as a mandatory ROUTER does."""
    network, nodes = play(1)
    network.crash("a#1")
    before = len(nodes["a#1"].log)
    assert network.send("kernel#1", "ctl", [b"x"], "a#1") is False
    network.run(2.0)
    assert len(nodes["a#1"].log) == before
