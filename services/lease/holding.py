"""A worker's side of the lease protocol: what it holds, what it has begun, what is not yet acknowledged.

One absolute message, `want`, gives credit, renews leases, claims them after a ledger restart and says which were begun;
it is repeated, so it needs no acknowledgement. Results are posted and resent until each of their leases is answered.
"""

from collections.abc import Iterable
from typing import Final

from midflight.kernel.mail import Mail
from midflight.messages.base import Message
from midflight.messages.samples import MOST_HELD, Ok, Stage, Want, WantOk
from midflight.messages.tensors import Column

WANT_S: Final = 0.3


class Holding:
    """The leases of one worker in one stage."""

    def __init__(self, stage: Stage, mail: Mail) -> None:
        self.stage, self.mail = stage, mail
        self.held: dict[int, int] = {}
        """sample -> epoch of its lease; kept until the result is acknowledged."""
        self.begun: set[int] = set()
        self.boot = ""
        self.version = -1
        """Newest policy version the ledger knows of."""
        self.evaluating = False
        """The ledger says that an evaluation round is not finished."""
        self.exhausted = False
        """The ledger says that nothing more will come."""
        self.closed = False
        """Nothing more is asked for, whatever there is room for."""
        self.next_want = 0.0
        self._posts: dict[tuple[str, int], set[tuple[int, int]]] = {}
        self._post_of: dict[tuple[int, int], tuple[str, int]] = {}
        self._number = 0

    def take(self, sample: int, epoch: int) -> bool:
        """Accept a lease; False for one already held, or older than the one held."""
        if epoch <= self.held.get(sample, -1):
            return False
        self.held[sample] = epoch
        self.begun.discard(sample)
        return True

    def begin(self, samples: Iterable[int]) -> None:
        """The effect of these may start now; announce it by `want` before it does."""
        self.begun.update(samples)

    def drop(self, sample: int) -> None:
        """No longer held: given back, refused or answered."""
        self.held.pop(sample, None)
        self.begun.discard(sample)

    def want(self, n: int, version: int = -1) -> None:
        """Say what is held and how much more is taken: no more than can still be named."""
        self.next_want = self.mail.bus.now() + WANT_S
        begun = [[sample, epoch] for sample, epoch in self.held.items() if sample in self.begun]
        held = begun + [[sample, epoch] for sample, epoch in self.held.items() if sample not in self.begun]
        n = 0 if self.closed else max(0, min(n, MOST_HELD - len(held)))
        # Not validated here: hundreds of leases, several times a step, and the ledger checks what it receives.
        want = Want.model_construct(stage=self.stage, n=n, held=held, begun=len(begun), version=version, boot=self.boot)
        self.mail.send("data", want)

    def hand_in(self, leases: Iterable[tuple[int, int]], message: Message, columns: Iterable[Column] = ()) -> None:
        """Post a result; its leases stay held until the ledger has answered every one of them."""
        self._number += 1
        key = (self.stage, self._number)
        self._posts[key] = set(leases)
        self._post_of.update(dict.fromkeys(self._posts[key], key))
        self.mail.post("data", key, message, columns=columns)

    def answered(self, message: Ok) -> list[tuple[int, int]]:
        """Settle what the ledger committed or declared stale; -> those leases that were stale."""
        for sample, epoch in (*message.done, *message.stale):
            if self.held.get(sample) == epoch:
                self.drop(sample)
            key = self._post_of.pop((sample, epoch), None)
            if key is None:
                continue
            self._posts[key].discard((sample, epoch))
            if not self._posts[key]:
                del self._posts[key]
                self.mail.settle(key)
        return [(sample, epoch) for sample, epoch in message.stale]

    def heard(self, message: WantOk) -> bool:
        """Note the ledger's boot and version; True when it was restarted: everything unacknowledged goes out again."""
        self.version, self.exhausted, self.evaluating = message.version, message.exhausted, message.evaluating
        restarted = bool(self.boot) and self.boot != message.boot
        self.boot = message.boot
        if restarted:
            self.mail.resend("data")
            self.next_want = 0.0
        return restarted
