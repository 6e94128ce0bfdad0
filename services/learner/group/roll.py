"""Who has come to a group from other hosts, and who sits where. Pure: it knows neither sockets nor clocks.

    world ranks = `here` on the first host + what others bring

Places are given once, when enough have come; who comes later is a spare, for the next group. From then on whatever
happens to one that has a place is the end of the group (`ends`).
"""

from dataclasses import dataclass, field

from midflight.messages.group import GroupHost

SILENCE_S = 10.0
"""A host that is not heard for so long is lost."""


@dataclass(slots=True)
class Guest:
    """One `midflight join`. first: its first rank, once it has a place."""

    said: GroupHost
    number: int
    """In the order of their coming."""
    heard: float
    count: int = 0
    first: int | None = None
    ended: dict[int, str] = field(default_factory=dict)
    """Its ranks of this group that are no more, and how."""

    @property
    def order(self) -> tuple[str, int, int]:
        """What one machine brings is together: its ranks exchange most."""
        return self.said.host, self.said.rank or 0, self.number


@dataclass(slots=True)
class Roll:
    """generation: of the group. share: ranks of a host that does not say how many. by_torchrun: places are those that
    torchrun gives."""

    generation: str
    world: int
    here: int
    share: int
    version: str
    torch: str
    by_torchrun: bool = False
    guests: dict[str, Guest] = field(default_factory=dict)
    whole: bool = False
    _left: dict[int, str] = field(default_factory=dict)

    @property
    def lacking(self) -> int:
        """Ranks that nobody has brought yet."""
        return self.world - self.here - sum(guest.count for guest in self.guests.values())

    def hear(self, name: str, said: GroupHost, now: float) -> str:
        """Note what a host says; -> why it is refused, or nothing."""
        guest = self.guests.get(name)
        if said.leaving:
            if guest:
                self._gone(name, f"host {said.host} leaves: {said.leaving}")
            return ""
        if guest is None:
            if why := self._unfit(said):
                return why
            guest = self.guests[name] = Guest(said, len(self.guests), now)
        guest.said, guest.heard = said, now
        if said.generation == self.generation:
            guest.ended |= {end.rank: end.how for end in said.ended}
        self._admit(guest)
        return ""

    def tick(self, now: float) -> None:
        """Who is not heard any more is gone."""
        for name, guest in list(self.guests.items()):
            if now - guest.heard > SILENCE_S:
                self._gone(name, f"host {guest.said.host} has not been heard of for {SILENCE_S:g} s")

    def ends(self) -> dict[int, str]:
        """What became of hosts and ranks of this group, by rank; empty while all are there."""
        return self._left | {
            rank: f"rank {rank} of the learner's {self.world}, on host {guest.said.host}, is gone ({how})"
            for guest in self.guests.values()
            for rank, how in guest.ended.items()
        }

    def living(self) -> dict[int, str]:
        """Ranks elsewhere of which no end is known, and their hosts."""
        return {
            rank: guest.said.host
            for guest in self.guests.values()
            if guest.first is not None
            for rank in range(guest.first, guest.first + guest.count)
            if rank not in guest.ended
        }

    def _unfit(self, said: GroupHost) -> str:
        for what, theirs, ours in (("midflight", said.version, self.version), ("torch", said.torch, self.torch)):
            if theirs != ours:
                return f"{what} {theirs} there and {ours} at the learner: install the same on every host"
        offers, wanted = said.offers or self.share, self.world - self.here
        if self.by_torchrun:
            if said.rank is None or said.world is None:
                return "this group's ranks are started by torchrun: start midflight by it there, too"
            if said.world != self.world or not 0 < said.rank < self.world:
                return f"torchrun says rank {said.rank} of {said.world}, and this group has {self.world} ranks"
        if offers > wanted:
            return (
                f"it brings {offers} ranks, and of this group's {self.world} only {wanted} are for other hosts: "
                f"leave out --ranks there, or set `ranks` to {self.here + offers} and `hosts` to match"
            )
        return ""

    def _admit(self, guest: Guest) -> None:
        """Count it in while there is room; the last one makes the group whole."""
        offers = guest.said.offers or self.share
        if self.whole or guest.count or offers > self.lacking:
            return
        if self.by_torchrun and any(one.count and one.said.rank == guest.said.rank for one in self.guests.values()):
            return  # its former process, which is not yet missed
        guest.count = offers
        if not self.lacking:
            self._seat()

    def _seat(self) -> None:
        first = self.here
        for guest in sorted((one for one in self.guests.values() if one.count), key=lambda one: one.order):
            guest.first = guest.said.rank if self.by_torchrun else first
            first += guest.count
        self.whole = True

    def _gone(self, name: str, why: str) -> None:
        guest = self.guests.pop(name)
        if guest.first is not None:
            self._left[guest.first] = why
