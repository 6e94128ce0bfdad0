"""Who is who: the current incarnation of every name, and who may speak for it.

Owned instances are children of the warden: their generations come from the spawner and only grow, so a message of an
older one is recognisable for ever (fencing). Attached instances (clients, controllers from outside) bring their own
identity and are never killed: a silent one only loses its session.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midflight.messages.knobs import Fallback, KnobDeclaration

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
    slot: str = ""
    """Of an attached controller: where it steers."""
    shadow: bool = False
    holds: tuple[str, ...] = ()
    fallback: Fallback | None = None
    declares: tuple[KnobDeclaration, ...] = ()

    def introduce(self, one: Instance) -> None:
        """What it says of itself."""
        one.greeted, one.holds, one.fallback, one.declares = True, self.holds, self.fallback, self.declares


class Registry:
    """The table of instances, one current incarnation a name."""

    def __init__(self, attached_timeout_s: float = 10.0) -> None:
        self.owned: dict[str, Instance] = {}
        self.beside: dict[str, Instance] = {}
        """A second incarnation of a name during a swap: the successor until it is in force, then the predecessor."""
        self.attached: dict[str, Instance] = {}
        self.attached_timeout_s = attached_timeout_s
        self._newest: dict[str, int] = {}
        """The highest generation of a name that is known of."""

    def add(self, name: str, slot: str, kind: str, heartbeat_timeout_s: float) -> Instance:
        """Announce an owned name before its first start (generation 0, stopped)."""
        self.owned[name] = Instance(name, 0, slot, kind, heartbeat_timeout_s)
        return self.owned[name]

    def begin(self, name: str, start_timeout_s: float, now: float, part: str = "") -> Instance:
        """Replace an owned name's incarnation by the next generation, starting."""
        new = self._next(name, start_timeout_s, now, part)
        new.cause = self.owned[name].cause
        self.owned[name] = new
        return new

    def stand_by(self, name: str, start_timeout_s: float, now: float, part: str) -> Instance:
        """Start the next generation beside the current one, without a say yet."""
        new = self._next(name, start_timeout_s, now, part)
        new.standby = True
        self.beside[name] = new
        return new

    def flip(self, name: str) -> tuple[Instance, Instance]:
        """The one beside becomes the current one, and the other way round; -> (new, old)."""
        new, old = self.beside[name], self.owned[name]
        self.owned[name], self.beside[name] = new, old
        new.standby = False
        return new, old

    def outgrow(self, name: str, generation: int) -> None:
        """Never hand out this generation again."""
        self._newest[name] = max(self._newest.get(name, 0), generation)

    def incarnations(self, name: str) -> list[Instance]:
        """The current one, then the one beside it, if there is one."""
        return [table[name] for table in (self.owned, self.beside) if name in table]

    def all_owned(self) -> list[Instance]:
        """Every incarnation of every name that the warden owns."""
        return [*self.owned.values(), *self.beside.values()]

    def find(self, name: str, generation: int) -> Instance | None:
        """The live incarnation, or None when the name is unknown, or this generation is over or fenced."""
        for instance in (*self.incarnations(name), *([self.attached[name]] if name in self.attached else [])):
            if instance.live and instance.generation == generation:
                return instance
        return None

    def _next(self, name: str, start_timeout_s: float, now: float, part: str) -> Instance:
        old = self.owned[name]
        newest = max(self._newest.get(name, 0), *(one.generation for one in self.incarnations(name)))
        new = Instance(name, newest + 1, old.slot, old.kind, old.heartbeat_timeout_s, state="starting", part=part)
        self._newest[name] = new.generation
        new.started = new.last_seen = now
        new.deadline = now + start_timeout_s
        return new

    def hello(self, greeting: Greeting, now: float) -> Instance | Refusal:
        """Admit a peer, or say why not.

        Codes: `identity` (it can never be admitted under this identity and should leave), `early` (the warden has
        not told its pid yet: repeat), `taken` (the name is in use), `full`.
        """
        if greeting.socket != f"{greeting.name}#{greeting.generation}":
            claim = f"{greeting.name}#{greeting.generation}"
            return Refusal("identity", f"socket identity {greeting.socket!r} is not the claimed {claim}")
        if greeting.name in self.owned:
            known = self.incarnations(greeting.name)
            meant = next((one for one in known if one.generation == greeting.generation), known[0])
            return self._recognise(meant, greeting, now)
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
        for instance in (*self.all_owned(), *self.attached.values()):
            instance.time_back(gap, now)

    def dump(self) -> dict[str, Any]:
        """Return the owned instances as plain values; attached ones say hello again to a new kernel."""
        tables = {"owned": self.owned, "beside": self.beside}
        dumped = {key: [instance.dump() for instance in table.values()] for key, table in tables.items()}
        return {**dumped, "newest": dict(self._newest)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `dump` for the names announced by `add`."""
        for key, table in (("owned", self.owned), ("beside", self.beside)):
            for dumped in state[key]:
                if dumped["name"] in self.owned:
                    table[dumped["name"]] = Instance.load(dumped)
        self._newest.update(state["newest"])

    def load_generations(self, state: Mapping[str, Any]) -> None:
        """Of a former run only which generations are used up."""
        for dumped in (*state["owned"], *state["beside"]):
            self.outgrow(dumped["name"], dumped["generation"])
        for name, generation in state["newest"].items():
            self.outgrow(name, generation)

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
        greeting.introduce(instance)
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
        slot = greeting.slot or greeting.name
        new = Instance(greeting.name, greeting.generation, slot, greeting.kind, self.attached_timeout_s, owned=False)
        greeting.introduce(new)
        new.shadow = old.shadow if old else greeting.shadow
        new.state, new.pid, new.session, new.boot = "ready", pid, greeting.session, greeting.boot
        new.started, new.last_seen = (old.started if old else now), now
        self.attached[greeting.name] = new
        return new
