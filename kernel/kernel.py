"""kernel: knows who is alive and who may steer what, and nothing about learning.

Takes   `hello`, `heartbeat`, `event.post`, the knob requests, `status.get`, `events.get`, `run.stop`, what changes a
        run (`live.py`), and the warden's reports of processes that started or ended.
Sends   `welcome` or `refused`, `heartbeat.ok`, `drain`, `knob.apply`, `knob.granted`, `state.get`, `state`, `peer.down`
        (to its peers), and every event on the publisher; to the warden: spawn, kill, ping.
Stores  journal.bin: events, knob changes and its own state, from which its successor goes on.
Dies    any time: the warden starts it again, it re-adopts its living services under the same pids, and they say hello
        again when they see its new boot id. It ends itself when the run is over.
"""

import os
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar

import structlog

from midflight.messages.control import (
    Done,
    Drain,
    Heartbeat,
    HeartbeatOk,
    Hello,
    PeerDown,
    Refused,
    RunStop,
    Status,
    StatusGet,
    Welcome,
)
from midflight.messages.envelope import MAJOR
from midflight.messages.events import EventsGet, Post
from midflight.messages.knobs import KnobAcquire, KnobApplied, KnobApply, KnobGet, KnobRelease, KnobSet
from midflight.messages.sockets import Incoming

from .commands import Command, Emit, Flip, Gone, HandOver, Kill, PutBack, RunOver, SendDrain, Spawn
from .controllers import ControllerDesk
from .instance import UP, Instance
from .knob_desk import KnobDesk
from .live import Live
from .mail import Bus
from .node import Letter, handles
from .owner import Owner
from .parts import Parts
from .refusal import Refusal
from .registry import Greeting
from .status import services
from .stream import Record, Stream
from .supervisor import Beat, Supervisor

HEARTBEAT_S = 0.5
TICK_S = 0.1
REPEAT_S = 1.0
DEATHS = 256
"""Newest deaths that are told again to whoever says hello: it may have been away, or not yet connected to us."""


class Kernel(Live):
    """Handlers around three state machines: supervision, knobs, events."""

    SERVES: ClassVar[tuple[str, ...]] = ("ctl", "ev")

    def __init__(
        self,
        identity: str,
        bus: Bus,
        run_id: str,
        supervisor: Supervisor,
        owner: Owner,
        journal: Record,
        parts: Parts,
    ) -> None:
        super().__init__(identity, bus)
        self.parts = parts
        self.run_id, self.supervisor, self.owner, self.journal = run_id, supervisor, owner, journal
        self.boot_id = os.urandom(8).hex()
        self.stream = Stream(self.mail, journal)
        self.desk = KnobDesk(self.stream, journal, self.granted)
        self.controllers = ControllerDesk(supervisor.registry, self.desk, self.stream)
        self.over: RunOver | None = None
        self._guests: dict[str, Instance] = {}
        self._ends: dict[int, str] = {}
        self._left: set[str] = set()
        """Attached controllers that this kernel has seen the last of."""
        self._taking: set[str] = set()
        """Attached controllers that take power as soon as they are ready."""
        self._heard = HeartbeatOk(boot=self.boot_id, seq=0)
        self._told: tuple[str, bool, int] = ("active", False, 0)
        """What the last answer to a heartbeat said, and whom it fits besides."""
        self._began = bus.now()
        self._deaths: deque[PeerDown] = deque(maxlen=DEATHS)
        self._next_repeat = 0.0

    def deliver(self, port: str, incoming: Incoming) -> None:
        """Messages; what comes on the publisher are only joins and leaves of its subscribers."""
        if port != "ev":
            super().deliver(port, incoming)

    def on_turn(self, now: float) -> float:
        """Hear the warden, look at deadlines, repeat what was not confirmed."""
        for inputs in self.owner.hear(self.supervisor, now):
            self.carry_out(inputs)
        self.carry_out(self.supervisor.on_tick(now))
        if now >= self._next_repeat:
            self._next_repeat = now + REPEAT_S
            self._free_knobs(now)
            for slot, apply in self.desk.unapplied():
                self._tell(slot, apply)
            for instance, why in self.owner.over_memory(self.supervisor):
                self.carry_out(self.supervisor.condemn(instance.name, instance.generation, why, now))
        self.stream.flush()
        return TICK_S

    def carry_out(self, commands: Iterable[Command]) -> None:
        """Do what the supervisor decided; its state is journaled first."""
        commands = list(commands)
        if not commands:
            return
        for command in commands:
            if isinstance(command, Flip) and command.kept is None:
                self.keep_parameters(self.supervisor.roster.by_name[command.name].slot)
        if any(isinstance(command, Emit) for command in commands):
            self.journal.append({"t": "supervisor", **self._supervision()})
        for command in commands:  # in one write with the record before it: who is in force, and who has the knobs
            if isinstance(command, Flip):
                self.flip(command)
        self.journal.flush()
        for command in commands:
            match command:
                case Spawn():
                    self.owner.spawn(command)
                case Kill():
                    self.owner.kill(command)
                case SendDrain(name=name, generation=generation):
                    drain = Drain(deadline_s=command.deadline_s, why=command.why)
                    self.mail.send("ctl", drain, to=f"{name}#{generation}")
                case Gone(name=name, generation=generation):
                    self._gone(f"{name}#{generation}", command.why)
                case HandOver():
                    self.hand_over(command)
                case PutBack(slot=slot):
                    self.desk.put_back(slot, command.kept, "its swap was rolled back")
                case Flip():
                    pass
                case Emit():
                    if command.topic in ("service.exit", "service.failed", "run.state"):
                        structlog.get_logger().info(command.topic, **command.body)
                    self.stream.emit("kernel", command.topic, command.body, of=command.key, final=command.final)
                case RunOver():
                    self.over = command
                    self.owner.end(command.code)

    def snapshot(self) -> dict[str, Any]:
        """Everything a successor needs; the journal begins with it after a rotation."""
        return {
            "supervisor": self._supervision(),
            "knobs": self.desk.table.snapshot(),
            "stream": self.stream.snapshot(),
        }

    def recover(self, base: dict[str, Any] | None, records: Iterable[dict[str, Any]]) -> None:
        """Take up where a former kernel, or a former run of this directory, stopped."""
        supervision = None
        if base is not None:
            supervision = base["supervisor"]
            self.desk.table.restore(base["knobs"])
            self.stream.restore(base["stream"])
        for record in records:
            match record["t"]:
                case "event":
                    self.stream.replay(record)
                case "knob":
                    self.desk.replay(record)
                case "supervisor":
                    supervision = record
        if supervision is not None:
            former = supervision["warden"] != self.owner.warden
            self.supervisor.load(supervision["state"], new_run=former)
            if former:
                self.desk.forget_owners()

    def _supervision(self) -> dict[str, Any]:
        return {"state": self.supervisor.dump(), "warden": self.owner.warden}

    # services

    @handles(Hello)
    def _on_hello(self, message: Hello, letter: Letter) -> None:
        if not message.proto_min <= MAJOR <= message.proto_max:
            why = f"{letter.sender} speaks protocols {message.proto_min}-{message.proto_max}, this run {MAJOR}"
            letter.reply(Refused(code="protocol", why=why))
            return
        name, _, generation = letter.sender.partition("#")
        greeting = Greeting(
            name=name,
            generation=int(generation),
            socket=letter.sender,
            pids=tuple(self.owner.pids(letter.pid, message.pid)),
            boot=self.boot_id,
            attach=message.role != "service",
            ready=message.ready,
            kind=message.kind,
            slot=message.slot or "",
            shadow=message.shadow,
            holds=tuple(message.holds),
            fallback=message.fallback,
            declares=tuple(message.knobs),
        )
        joins = message.role == "controller" or greeting.name in self.supervisor.registry.beside
        if joins and (why := self.cannot_attach(message)):
            letter.reply(Refused(code="knob", why=why))
            return
        answer, commands = self.supervisor.on_hello(greeting, self.bus.now())
        if isinstance(answer, Refusal):
            letter.reply(Refused(code=answer.code, why=answer.why))
            return
        try:
            applies = answer.slot if answer.owned else answer.name
            current = not answer.owned or self.supervisor.registry.owned[answer.name] is answer
            knobs = self.desk.declare(applies, message.knobs) if current else {}
        except ValueError as error:
            letter.reply(Refused(code="knob", why=str(error)))
            return
        if self.desk.table.held_by(answer.identity):  # the former kernel died before it could tell
            answer.shadow = False
        if message.role == "controller" and answer.identity not in self._guests:
            self.came(answer, message.reason, again=message.ready)
        welcome = Welcome(
            proto=MAJOR,
            boot=self.boot_id,
            heartbeat_s=HEARTBEAT_S,
            knobs={name: knob.value for name, knob in knobs.items()},
            versions={name: knob.version for name, knob in knobs.items()},
            role=answer.role,
            paused=self._paused(answer),
        )
        letter.reply(welcome)
        for down in self._deaths if answer.owned else ():
            letter.reply(down)
        self.carry_out(commands)

    @handles(Heartbeat)
    def _on_heartbeat(self, message: Heartbeat, letter: Letter) -> None:
        sender, now = letter.sender, self.bus.now()
        name, _, generation = sender.partition("#")
        number = int(generation)
        instance = self.supervisor.registry.find(name, number)
        if instance is None:
            if name in self.supervisor.registry.owned or sender in self._left:
                letter.reply(Refused(code="identity", why=f"{sender} is not a living service of this run"))
            else:  # attached to the former kernel: our boot id makes it say hello again
                letter.reply(HeartbeatOk(boot=self.boot_id, seq=self.stream.newest))
            return
        overtaken = instance.owned and instance.state in ("ready", "running") and not message.ready
        phase = "" if overtaken else message.phase or ""  # a phase of its start, which is over
        waits = tuple([(wait.name, wait.left_s) for wait in message.waits])
        beat = Beat(message.progress, phase, message.phase_s or 0.0, waits, message.stats, message.failures)
        letter.reply(self.heartbeat_ok(instance))
        if message.ready and instance.state == "loading":
            self.carry_out(self.supervisor.on_ready(name, number, now))
        self.carry_out(self.supervisor.on_heartbeat(name, number, beat, now))
        if message.ready and sender in self._taking:
            self._taking.discard(sender)
            self.take_power(name)

    @handles(Post)
    def _on_post(self, message: Post, letter: Letter) -> None:
        if letter.sender in self._left:
            letter.reply(Refused(code="identity", why=f"{letter.sender} has left this run"))
            return
        self.stream.post(message, letter)
        if message.topic == "metrics" and message.step is not None:
            self.desk.on_step(message.step)

    # knobs

    @handles(KnobAcquire)
    def _on_acquire(self, message: KnobAcquire, letter: Letter) -> None:
        """Only who is watched may hold a knob: the hold of anybody else would outlive its holder."""
        if self._instance(letter.sender):
            self.desk.acquire(message, letter)
        else:
            letter.reply(Refused(code="identity", why=f"{letter.sender} has not said hello to this run"))

    @handles(KnobRelease)
    def _on_release(self, message: KnobRelease, letter: Letter) -> None:
        self.desk.release(message, letter)

    @handles(KnobSet)
    def _on_set(self, message: KnobSet, letter: Letter) -> None:
        self.desk.set(message, letter)
        self._tell_unapplied(message.knob)

    @handles(KnobApplied)
    def _on_applied(self, message: KnobApplied, letter: Letter) -> None:
        knob = self.desk.table.knobs.get(message.knob)
        sender = self._instance(letter.sender)
        if knob and sender and sender.applies(message.knob):
            users = [one.identity for one in self._users(knob.spec.applies, message.knob) if one.state in UP]
            self.desk.applied(message, letter.sender, users)
            self._tell_unapplied(message.knob)

    @handles(KnobGet)
    def _on_knob_get(self, message: KnobGet, letter: Letter) -> None:
        self.desk.show(message, letter)

    # clients

    @handles(StatusGet)
    def _on_status(self, message: StatusGet, letter: Letter) -> None:
        now = self.bus.now()
        letter.reply(
            Status(
                run_id=self.run_id,
                boot=self.boot_id,
                kernel_pid=os.getpid(),
                warden_pid=self.owner.warden,
                seq=self.stream.newest,
                up_s=now - self._began,
                stopping=self.supervisor.stop.why[:200] if self.supervisor.stop else None,
                services=services(self.supervisor, now),
                counters=dict(self.mail.counters),
            )
        )

    @handles(EventsGet)
    def _on_events_get(self, message: EventsGet, letter: Letter) -> None:
        self.stream.answer(message, letter)

    @handles(RunStop)
    def _on_run_stop(self, message: RunStop, letter: Letter) -> None:
        letter.reply(Done(detail=message.mode))
        code = 1 if message.mode == "kill" else 0
        self.carry_out(self.supervisor.request_stop(message.mode, message.why, self.bus.now(), code))

    def _instance(self, identity: str) -> Instance | None:
        """Who lives under this identity."""
        name, _, generation = identity.partition("#")
        return self.supervisor.registry.find(name, int(generation))

    def _free_knobs(self, now: float) -> None:
        """End the holds of clients that went while the former kernel was away and never came back."""
        if now - self._began > self.supervisor.registry.attached_timeout_s:
            for owner in self.desk.owners():
                if not self._instance(owner):
                    self.desk.gone(owner)
                    self.controllers.missing(owner)
            self.tell_changed_by(self.controllers.orphans)
            known = {*self.supervisor.roster.slots, *self.supervisor.registry.attached}
            for applies in {knob.spec.applies for knob in self.desk.table.knobs.values()} - known:
                self.desk.declare(applies, ())

    def _users(self, applies: str, knob: str) -> list[Instance]:
        """The processes that apply a knob: replicas of a slot, or what is attached under that name.

        In the course of a swap not all of a slot have it.
        """
        registry = self.supervisor.registry
        users = [registry.owned[child.name] for child in self.supervisor.roster.select(applies)]
        users += [registry.attached[applies]] if applies in registry.attached else []
        return [one for one in users if one.greeted and one.applies(knob)]

    def _tell(self, applies: str, message: KnobApply) -> None:
        for one in self._users(applies, message.knob):
            self.mail.send("ctl", message, to=one.identity)

    def _tell_unapplied(self, name: str) -> None:
        """Do not let a fresh value wait for the next repetition."""
        for applies, apply in self.desk.unapplied():
            if apply.knob == name:
                self._tell(applies, apply)

    def _paused(self, one: Instance) -> bool:
        return one.owned and self.supervisor.roster.by_name[one.name].paused

    def heartbeat_ok(self, instance: Instance) -> HeartbeatOk:
        """The answer to a heartbeat."""
        role, paused = instance.role, self._paused(instance)
        key = (role, paused, self.stream.newest)
        if key != self._told:
            self._told = key
            self._heard = HeartbeatOk(boot=self.boot_id, seq=self.stream.newest, role=role, paused=paused)
        return self._heard

    def _gone(self, identity: str, why: str) -> None:
        """Free its knobs; tell whoever holds work for it."""
        self.desk.gone(identity, f"is gone: {why}"[:500])
        self.guest_gone(identity, why)
        self.mail.forget(identity)
        if len(self._deaths) == DEATHS:  # by now nothing of the oldest is on its way any more
            self.stream.seen.forget(self._deaths[0].peer)
        down = PeerDown(peer=identity, why=why[:2000])
        self._deaths.append(down)
        for instance in self.supervisor.registry.all_owned():
            if instance.live and instance.identity != identity:
                self.mail.send("ctl", down, to=instance.identity)
