"""The kernel's counter for whoever changes a run while it goes on: services, swaps, controllers from outside."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from midflight.messages.base import Scalar
from midflight.messages.control import Done, Drain, HeartbeatOk, Hello, Refused, State, StateGet
from midflight.messages.knobs import KnobGranted
from midflight.messages.live import ControllerDo, ControllersGet, ServiceDo, ServiceScale, SwapOk, SwapStart
from midflight.messages.wire import Received

from .children import tail
from .commands import Command, Flip, HandOver
from .controllers import ControllerDesk
from .instance import Instance
from .knob_desk import OPERATOR, KnobDesk
from .node import Letter, Node, handles
from .owner import Owner
from .parts import Parts
from .refusal import Refusal
from .stream import Stream
from .supervisor import Supervisor

HAND_S = 2.0
"""Time for each half of handing a state over; the supervisor has a limit on the whole."""


class Live(Node):
    """Handlers only; `kernel.Kernel` has the rest."""

    supervisor: Supervisor
    desk: KnobDesk
    controllers: ControllerDesk
    stream: Stream
    parts: Parts
    owner: Owner
    _guests: dict[str, Instance]
    """Attached controllers by their identity."""
    _taking: set[str]
    _left: set[str]
    _ends: dict[int, str]
    """Process handle of an attached controller -> its identity."""

    def carry_out(self, commands: Iterable[Command]) -> None:
        """Do what the supervisor decided."""
        raise AssertionError

    def heartbeat_ok(self, instance: Instance) -> HeartbeatOk:
        """The answer to a heartbeat, which tells a process its role."""
        raise AssertionError

    # services

    @handles(ServiceDo)
    def _on_service_do(self, message: ServiceDo, letter: Letter) -> None:
        now, why = self.bus.now(), message.reason or f"midflight service {message.verb}"
        match message.verb:
            case "pause" | "resume":
                answer = self.supervisor.request_pause(message.name, message.verb == "pause", now)
            case "drain":
                answer = self.supervisor.request_drain(message.name, why, now)
            case "restart":
                answer = self.supervisor.request_restart(message.name, why, now)
            case "kill":
                answer = self.supervisor.request_kill(message.name, why, now)
        self._asked(answer, message.verb, message.name, message.reason)
        self._answer(answer, letter)
        for child in self.supervisor.roster.select(message.name):
            self.tell_role(*self.supervisor.registry.incarnations(child.name))

    @handles(ServiceScale)
    def _on_service_scale(self, message: ServiceScale, letter: Letter) -> None:
        spec = self.supervisor.roster.specs.get(message.slot)
        if spec is not None and spec.takeover != "beside" and message.replicas != 1:
            letter.reply(Refused(code="one", why=f"{message.slot}: there is exactly one of it"))
            return
        why = message.reason or "midflight service scale"
        answer = self.supervisor.request_scale(message.slot, message.replicas, why, self.bus.now())
        self._asked(answer, "scale", message.slot, message.reason, replicas=message.replicas)
        self._answer(answer, letter)

    def _asked(self, answer: list[Command] | Refusal, verb: str, name: str, reason: str, **more: Scalar) -> None:
        """Who asked for it and why is kept, unless it was refused."""
        if not isinstance(answer, Refusal):
            body: dict[str, Scalar] = {"verb": verb, "name": name, "by": OPERATOR, "reason": reason, **more}
            self.stream.emit("kernel", "service.asked", body)

    @handles(SwapStart)
    def _on_swap(self, message: SwapStart, letter: Letter) -> None:
        known = message.slot in self.supervisor.roster.specs
        part = self.parts.put(message.slot, message.part_json, message.python_path) if known else ""
        if isinstance(part, Refusal):
            letter.reply(Refused(code=part.code, why=part.why))
            return
        asked = (message.slot, part, message.probation_s, message.reason, self.bus.now())
        self._swapping(self.supervisor.request_swap(*asked), message.slot, letter)

    # controllers

    @handles(ControllersGet)
    def _on_controllers_get(self, message: ControllersGet, letter: Letter) -> None:
        letter.reply(self.controllers.show())

    @handles(ControllerDo)
    def _on_controller_do(self, message: ControllerDo, letter: Letter) -> None:
        before = {one.identity: one.role for one in self.controllers.all()}
        match message.verb:
            case "promote":
                refusal = self.controllers.promote(message.name, message.reason)
            case "rollback":
                self._roll_back(message, letter)
                return
            case "lock":
                refusal = self.controllers.lock(message.name, message.reason)
            case "unlock":
                refusal = self.controllers.unlock(message.name, message.reason)
            case "detach":
                refusal = self._detach(message)
        self._answer(refusal or [], letter)
        self.tell_changed(before)

    def _roll_back(self, message: ControllerDo, letter: Letter) -> None:
        """A swap under way, else a promotion, else a swap that is done."""
        before, now = {one.identity: one.role for one in self.controllers.all()}, self.bus.now()
        why = message.reason or "rolled back"
        if self.supervisor.leaving(message.name):
            text = f"the swap of {message.name} is in force and about to be done: roll it back then"
            letter.reply(Refused(code="busy", why=text))
            return
        cancelled = self.supervisor.cancel_swap(message.name, why, now)
        if cancelled is not None:
            self._answer(cancelled, letter)
            return
        refusal = self.controllers.rollback(message.name, message.reason)
        if refusal is None or refusal.code == "locked":
            self._answer(refusal or [], letter)
            self.tell_changed(before)
            return
        self._swapping(self.supervisor.swap_back(message.name, why, now), message.name, letter)

    def _detach(self, message: ControllerDo) -> Refusal | None:
        one = self.supervisor.registry.attached.get(message.name)
        if one is None or not one.holds:
            known = ", ".join(sorted(n for n, one in self.supervisor.registry.attached.items() if one.holds)) or "none"
            ours = f"{message.name} belongs to the topology" if message.name in self.supervisor.registry.owned else ""
            return Refusal("unknown", f"{ours or f'{message.name!r} is not attached'}; attached are: {known}")
        self.lost(one, message.reason or "detached")
        self.mail.send("ctl", Drain(deadline_s=0.0, why=message.reason or "detached"), to=one.identity)
        return None

    # what follows from decisions

    def hand_over(self, command: HandOver) -> None:
        """State of the old one to the new one."""
        old, new = f"{command.name}#{command.old}", f"{command.name}#{command.new}"

        def handed(why: str) -> None:
            self.carry_out(self.supervisor.on_handed(command.name, command.new, why, self.bus.now()))

        def taken(received: Received) -> None:
            answer = received.message
            handed(answer.why if isinstance(answer, Refused) else "")

        def given(received: Received) -> None:
            state = received.message
            if not isinstance(state, State):
                handed(state.why if isinstance(state, Refused) else "no state")
            elif not state.schema_name:
                handed("")
            else:
                self.mail.request("ctl", state, HAND_S, taken, handed, name="state taken over", to=new)

        self.mail.request("ctl", StateGet(), HAND_S, given, handed, name="state", to=old)

    def flip(self, command: Flip) -> None:
        """Parameters and knobs of a name pass from one incarnation to the other."""
        child = self.supervisor.roster.by_name[command.name]
        new = self.supervisor.registry.find(command.name, command.new)
        if new is None:
            return
        self.desk.exchange(child.slot, new, f"{command.name}#{command.old}")
        if command.kept is not None:
            self.desk.put_back(child.slot, command.kept, "its swap was rolled back")
        self.tell_role(*self.supervisor.registry.incarnations(command.name))

    def keep_parameters(self, slot: str) -> None:
        """As they are before the first replica of a slot is replaced, for whoever is taken back later."""
        swapping = [child.swap for child in self.supervisor.roster.select(slot) if child.swap]
        if not any(swap.kept for swap in swapping):
            for swap in swapping:
                swap.kept = self.desk.parameters(slot)

    def granted(self, owner: str, message: KnobGranted) -> None:
        """Somebody has a knob who did not just ask for it: tell, and let it act."""
        name, _, generation = owner.partition("#")
        one = self.supervisor.registry.find(name, int(generation)) if generation else None
        if one is not None:
            one.shadow = False
            self.carry_out(self.supervisor.told([one]))
            self.mail.send("ctl", message, to=owner)
            self.tell_role(one)

    def tell_role(self, *instances: Instance) -> None:
        """Say at once what the next heartbeat's answer would."""
        for one in instances:
            if one.live and one.greeted:
                self.mail.send("ctl", self.heartbeat_ok(one), to=one.identity)

    def tell_changed_by(self, change: Callable[[], None]) -> None:
        """Do something that changes roles; journal and tell them."""
        before = {one.identity: one.role for one in self.controllers.all()}
        change()
        self.tell_changed(before)

    def tell_changed(self, before: Mapping[str, str]) -> None:
        """Journal and tell the roles that have changed."""
        changed = [one for one in self.controllers.all() if before.get(one.identity) != one.role]
        self.carry_out(self.supervisor.told(changed))
        self.tell_role(*changed)

    # attached controllers

    def cannot_attach(self, hello: Hello) -> str:
        """Why a controller cannot join a run that goes on, or nothing."""
        unknown = [name for name in hello.holds if name not in self.desk.table.knobs]
        if unknown:
            known = ", ".join(sorted(self.desk.table.knobs)) or "none yet"
            return f"there is no knob {unknown[0]!r} in this run; there are: {known}"
        empty = hello.role == "controller" and not hello.holds
        return "a controller from outside must hold at least one knob" if empty else ""

    def came(self, one: Instance, reason: str, again: bool) -> None:
        """An attached controller has said hello for the first time to this incarnation of the kernel.

        `again`: it was attached to the former one already.
        """
        self._guests[one.identity] = one
        if not one.shadow and not self.desk.table.held_by(one.identity):
            one.shadow = True
            self._taking.add(one.identity)
        handle = self.owner.handle(one.pid) if one.pid else None
        if handle is not None:
            self._ends[handle] = one.identity
        if not again:
            self.controllers.announce(one, reason)

    def take_power(self, name: str) -> None:
        """An attached controller that did not come as a shadow is ready."""
        before = {one.identity: one.role for one in self.controllers.all()}
        refusal = self.controllers.promote(name, "attached")
        self.tell_changed(before)
        if refusal is not None and refusal.code != "active":
            one = self.supervisor.registry.attached[name]
            self.lost(one, refusal.why)
            self.mail.send("ctl", Drain(deadline_s=0.0, why=refusal.why), to=one.identity)

    def lost(self, one: Instance, why: str) -> None:
        """An attached controller is gone."""
        before = {other.identity: other.role for other in self.controllers.all()}
        self.carry_out(self.supervisor.on_leave(one.name, one.generation, why))
        self.tell_changed(before)

    def guest_gone(self, identity: str, why: str) -> None:
        """Its knobs have fallen back; its parameters go with it."""
        one = self._guests.pop(identity, None)
        if one is not None:
            self._left.add(identity)
            self.desk.declare(one.name, ())
            self.controllers.departed(one, why)

    def watches(self) -> dict[int, Callable[[], None]]:
        """The processes of attached controllers, which end without the warden noticing."""
        return {handle: partial(self._ended, handle) for handle in self._ends}

    def _ended(self, handle: int) -> None:
        one = self._guests.get(self._ends.pop(handle))
        os.close(handle)
        if one is not None:
            words = tail(self.parts.folder.parent / "logs" / f"{one.name}.out").strip().rpartition("\n")[2]
            self.lost(one, f"its process has ended{f': {words}' if words else ''}"[:1000])

    def _answer(self, answer: list[Command] | Refusal, letter: Letter) -> None:
        if isinstance(answer, Refusal):
            letter.reply(Refused(code=answer.code, why=answer.why))
            return
        self.carry_out(answer)
        letter.reply(Done())

    def _swapping(self, answer: tuple[int, list[Command]] | Refusal, slot: str, letter: Letter) -> None:
        if isinstance(answer, Refusal):
            letter.reply(Refused(code=answer.code, why=answer.why))
            return
        number, commands = answer
        self.carry_out(commands)
        letter.reply(SwapOk(slot=slot, number=number))
