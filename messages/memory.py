"""The in-memory twin of the transport: one process, a virtual clock, seeded delays, duplicates, drops and crashes.

A node is anything with `deliver(port, incoming)` and `turn(now) -> seconds until its next turn`. Ports are named as in
a run: "ctl" and "data" are answered by whoever binds them, "ev" goes to every other node.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from .sockets import Incoming


class Node(Protocol):
    """What the network drives."""

    def deliver(self, port: str, incoming: Incoming) -> None:
        """Take one message."""

    def turn(self, now: float) -> float:
        """Do what is due; -> seconds until the next turn."""


@dataclass
class Network:
    """A topology in one process. `loss` and `repeat` are probabilities a message, `delay` its longest, s."""

    seed: int
    binds: dict[str, str]
    delay: float = 0.002
    loss: float = 0.0
    repeat: float = 0.0
    clock: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random, self._queue, self._number = (
            random.Random(self.seed),
            list[tuple[float, int, Callable[[], None]]](),
            0,
        )

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many virtual seconds."""
        self._number += 1
        heapq.heappush(self._queue, (self.clock + seconds, self._number, action))

    def join(self, identity: str, node: Node, pid: int = 0) -> None:
        """Put a node on the network under its identity."""
        self.nodes[identity], self.pids[identity] = node, pid
        self.at(0, lambda: self._turn(identity, node))

    def crash(self, identity: str) -> None:
        """The node stops as by SIGKILL."""
        self.nodes.pop(identity, None)

    def send(self, source: str, port: str, frames: list[bytes], to: str = "") -> bool:
        """See `kernel.mail.Bus.send`; `source` is the sender's identity."""
        owner = self.binds[port].split("#")[0]
        mine = source.split("#")[0] == owner
        targets = [to] if to else [n for n in self.nodes if (n.split("#")[0] == owner) != mine]
        for target in targets:
            for _ in range((self.random.random() >= self.loss) + (self.random.random() < self.repeat)):
                incoming = Incoming("" if mine else source, list(frames), self.pids.get(source))
                self.at(self.random.uniform(0, self.delay), partial(self._deliver, target, port, incoming))
        return not to or to in self.nodes

    def _deliver(self, identity: str, port: str, incoming: Incoming) -> None:
        if node := self.nodes.get(identity):
            node.deliver(port, incoming)

    def _turn(self, identity: str, node: Node) -> None:
        if self.nodes.get(identity) is node:
            self.at(max(node.turn(self.clock), 1e-4), lambda: self._turn(identity, node))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass."""
        while self._queue and self._queue[0][0] <= until and not stop():
            self.clock, _, action = heapq.heappop(self._queue)
            action()
