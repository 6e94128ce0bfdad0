"""Who is who: the current incarnation of every name, and who may speak for it.

Owned instances are children of the warden: their generations come from the spawner and only grow, so a message of an
older one is recognisable for ever (fencing). Attached instances (clients, controllers from outside) bring their own
identity and are never killed: a silent one only loses its session.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .instance import Instance
from .refusal import Refusal

MAX_ATTACHED = 1024


@dataclass(frozen=True, slots=True)
class Greeting:
    """A hello, with what the transport knows about its sender."""

    name: str
    generation: int
    socket: str
    """Socket identity of the peer; must be `name#generation`."""
    pids: tuple[int, ...]
    """Process id of the peer as the operating system tells it, then its parent, grandparent and so on: a launcher
    such as torchrun may stand between the warden's child and the process that speaks. Empty when unknown."""
    boot: str
    """The kernel's own boot id, noted as greeted."""
    kind: str = ""
    attach: bool = False
    """Whether it asks to be attached rather than to be recognised as a child."""
    session: str = ""
    ready: bool = False


class Registry:
    """The table of instances, one current incarnation a name."""

    def __init__(self, attached_timeout_s: float = 10.0) -> None:
        self.owned: dict[str, Instance] = {}
        self.attached: dict[str, Instance] = {}
        self.attached_timeout_s = attached_timeout_s

    def add(self, name: str, slot: str, kind: str, heartbeat_timeout_s: float) -> Instance:
        """Announce an owned name before its first start (generation 0, stopped)."""
        self.owned[name] = Instance(name, 0, slot, kind, heartbeat_timeout_s)
        return self.owned[name]

    def begin(self, name: str, start_timeout_s: float, now: float) -> Instance:
        """Replace an owned name's incarnation by the next generation, starting."""
        old = self.owned[name]
        new = Instance(name, old.generation + 1, old.slot, old.kind, old.heartbeat_timeout_s, state="starting")
        new.started = new.last_seen = now
        new.deadline = now + start_timeout_s
        new.cause = old.cause
        self.owned[name] = new
        return new

    def find(self, name: str, generation: int) -> Instance | None:
        """The live incarnation, or None when the name is unknown, or this generation is over or fenced."""
        instance = self.owned.get(name) or self.attached.get(name)
        return instance if instance and instance.live and instance.generation == generation else None

    def hello(self, greeting: Greeting, now: float) -> Instance | Refusal:
        """Admit a peer, or say why not.

        Codes: `identity` (it can never be admitted under this identity and should leave), `early` (the warden has
        not told its pid yet: repeat), `taken` (the name is in use), `full`.
        """
        if greeting.socket != f"{greeting.name}#{greeting.generation}":
            claim = f"{greeting.name}#{greeting.generation}"
            return Refusal("identity", f"socket identity {greeting.socket!r} is not the claimed {claim}")
        if greeting.name in self.owned:
            return self._recognise(self.owned[greeting.name], greeting, now)
        if not greeting.attach:
            return Refusal("identity", f"{greeting.socket}: this run has no service {greeting.name!r}")
        return self._attach(greeting, now)

    def silent(self, now: float) -> list[Instance]:
        """Take out and return the attached instances whose session has expired."""
        lost = [instance for instance in self.attached.values() if instance.overdue(now)]
        for instance in lost:
            self.detach(instance.name, instance.overdue(now))
        return lost

    def detach(self, name: str, why: str) -> Instance | None:
        """End an attached instance's session."""
        instance = self.attached.pop(name, None)
        if instance:
            instance.state, instance.cause = "stopped", why
        return instance

    def time_back(self, gap: float, now: float) -> None:
        """The kernel itself was stopped for `gap` seconds: nobody is to blame for that silence."""
        for instance in (*self.owned.values(), *self.attached.values()):
            instance.time_back(gap, now)

    def dump(self) -> list[dict[str, Any]]:
        """Return the owned instances as plain values; attached ones say hello again to a new kernel."""
        return [instance.dump() for instance in self.owned.values()]

    def load(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Undo `dump` for the names announced by `add`."""
        for state in states:
            if state["name"] in self.owned:
                self.owned[state["name"]] = Instance.load(state)

    def _recognise(self, instance: Instance, greeting: Greeting, now: float) -> Instance | Refusal:
        if greeting.generation != instance.generation or not instance.live:
            state = instance.state if greeting.generation == instance.generation else "fenced"
            living = f"; the current one is {instance.identity}" if state == "fenced" else ""
            return Refusal("identity", f"{greeting.socket} is {state}{living}")
        if instance.pid is None:
            return Refusal("early", f"{greeting.socket}: the warden has not told its pid yet, say hello again")
        if instance.pid not in greeting.pids:
            peer = greeting.pids[0] if greeting.pids else "unknown"
            text = f"{greeting.socket} is process {instance.pid} or a child of it, not process {peer}"
            return Refusal("identity", text)
        if instance.state == "starting":
            instance.state = "loading"
        instance.kind = greeting.kind or instance.kind
        instance.boot, instance.session, instance.last_seen = greeting.boot, greeting.session, now
        return instance

    def _attach(self, greeting: Greeting, now: float) -> Instance | Refusal:
        if any(greeting.name == owned.slot for owned in self.owned.values()):
            return Refusal("taken", f"{greeting.name!r} is a service of this run; attach under another name")
        pid = greeting.pids[0] if greeting.pids else None
        old = self.attached.get(greeting.name)
        if old and (old.pid, old.session) != (pid, greeting.session):
            return Refusal("taken", f"{old.identity} is attached by process {old.pid}; use another name")
        if old and greeting.generation < old.generation:
            return Refusal("identity", f"{greeting.socket} is fenced; the current one is {old.identity}")
        if len(self.attached) >= MAX_ATTACHED and not old:
            return Refusal("full", f"{MAX_ATTACHED} clients are attached already")
        new = Instance(
            greeting.name, greeting.generation, greeting.name, greeting.kind, self.attached_timeout_s, owned=False
        )
        new.state, new.pid, new.session, new.boot = "ready", pid, greeting.session, greeting.boot
        new.started, new.last_seen = (old.started if old else now), now
        self.attached[greeting.name] = new
        return new
