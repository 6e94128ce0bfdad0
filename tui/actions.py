"""Every change the screens can make, as a value: what, on whom, old -> new, effect, undo, risk, and what is sent.

    action = pause(service)
    reason = await dialog(action)          # the one dialog; None when the person thought better of it
    feed.ask("ctl", action.sent(reason))

Screens build actions; only `app.propose` carries them out, and only through the dialog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from midflight.messages.base import Message, Scalar
from midflight.messages.control import Done, Refused, RunStop, ServiceStatus
from midflight.messages.knobs import KnobOk, KnobRelease, KnobSet, KnobStatus
from midflight.messages.live import ControllerDo, ControllerStatus, ServiceDo, ServiceScale, SwapOk

from .words import number

Risk = Literal["reversible", "disruptive", "destructive"]
"""reversible: enter. disruptive: `y`. destructive: the name typed."""

STOPS: Final = {
    "drain": "finishes the work in hand, writes a checkpoint, then ends",
    "stop": "ends without finishing the work in hand",
    "kill": "kills every process at once",
}


@dataclass(frozen=True, slots=True)
class Action:
    """One change. Either `message` goes to the kernel, or the command line verb `words` is run as a process."""

    title: str
    target: str
    effect: str
    undo: str
    risk: Risk
    old: str = ""
    new: str = ""
    typed: str = ""
    """What a person types to confirm a destructive action."""
    message: Message | None = None
    words: tuple[str, ...] = ()

    def sent(self, reason: str) -> Message:
        """The message with the reason in it, where its kind has a place for one."""
        assert self.message is not None
        fields = type(self.message).model_fields
        place = "reason" if "reason" in fields else "why" if "why" in fields else ""
        return self.message.model_copy(update={place: reason}) if place else self.message

    def verb(self, reason: str) -> tuple[str, ...]:
        """The words of the command line with the reason in them."""
        return (*self.words, "--reason", reason) if reason else self.words


def said(answer: Message) -> str:
    """What an answer to a change adds to `done` or `refused`."""
    if isinstance(answer, Refused):
        return answer.why
    if isinstance(answer, Done):
        return answer.detail
    if isinstance(answer, SwapOk):
        return f"swap {answer.number} begins"
    return f"version {answer.version}" if isinstance(answer, KnobOk) else ""


def set_knob(knob: KnobStatus, value: Scalar) -> Action:
    """Give a knob another value; one that a controller holds is taken from it."""
    name, held = knob.declaration.name, knob.owner is not None and knob.owner != "operator"
    unit = f" {knob.declaration.unit}" if knob.declaration.unit else ""
    applies = f"{knob.applies} uses it from its {knob.declaration.when}"
    return Action(
        title=f"set {name}",
        target=f"{name} (version {knob.version})",
        old=f"{number(knob.value)}{unit}",
        new=f"{number(value)}{unit}",
        effect=f"taken from {knob.owner}; {applies}" if held else applies,
        undo=f":release {name} gives it back" if held else f":set {name}={number(knob.value, 8)}",
        risk="reversible",
        message=KnobSet(knob=name, value=value, take=held, if_version=None if held else knob.version),
    )


def release(knob: KnobStatus) -> Action:
    """Give a knob that a person took back to its controller."""
    name = knob.declaration.name
    effect, undo = "its former owner steers it again", f":set {name}={number(knob.value, 8)}"
    return Action(
        f"release {name}", name, effect, undo, "reversible", knob.owner or "-", "former owner",
        message=KnobRelease(knob=name),
    )  # fmt: skip


def service_do(verb: Literal["pause", "resume", "drain", "restart", "kill"], name: str, state: str = "") -> Action:
    """Pause, resume, drain, restart or kill a service, or all replicas of a slot."""
    effects: dict[str, tuple[str, str, str, Risk]] = {
        "pause": ("paused", "finishes what it holds, takes nothing new, stays", f":resume {name}", "reversible"),
        "resume": ("running", "takes work again", f":pause {name}", "reversible"),
        "drain": ("drained", "finishes what it holds, leaves, is not restarted", f":restart {name}", "disruptive"),
        "restart": ("restarted", "finishes what it holds; its next generation starts", "cannot be undone",
                    "disruptive"),
        "kill": ("killed", "SIGKILL now; what it held is issued again; restarted by its policy", "cannot be undone",
                 "destructive"),
    }  # fmt: skip
    new, effect, undo, risk = effects[verb]
    return Action(
        f"{verb} {name}", name, effect, undo, risk, state, new, name if risk == "destructive" else "",
        ServiceDo(verb=verb, name=name),
    )  # fmt: skip


def scale(slot: str, replicas: int, services: Sequence[ServiceStatus]) -> Action:
    """From now on so many replicas of a slot."""
    now = sum((service.slot or service.name) == slot for service in services)
    fewer = replicas < now
    return Action(
        f"scale {slot}", slot, "those too many are drained" if fewer else "new replicas start",
        f":scale {slot} {now}", "disruptive" if fewer else "reversible", f"{now} replicas", f"{replicas} replicas",
        message=ServiceScale(slot=slot, replicas=replicas),
    )  # fmt: skip


def promote(controller: ControllerStatus, active: str) -> Action:
    """Give a controller without power all the knobs it holds."""
    holds = ", ".join(controller.holds) or "its knobs"
    return Action(
        f"promote {controller.name}", f"slot {controller.slot}", f"{holds} are steered by it from its next decision on",
        f":rollback {controller.slot}", "disruptive", active or "nobody", controller.name,
        message=ControllerDo(verb="promote", name=controller.name),
    )  # fmt: skip


def rollback(slot: str, active: str, previous: str) -> Action:
    """Undo the last promotion or swap of a slot."""
    return Action(
        f"roll back {slot}", f"slot {slot}", "the last promotion or swap is undone, parameters too",
        f":promote {active}" if active else "a new promotion", "disruptive", active or "nobody",
        previous or "the former one", message=ControllerDo(verb="rollback", name=slot),
    )  # fmt: skip


def lock(slot: str, locked: bool) -> Action:
    """Hold a slot's knobs by hand at their present values, or give them back."""
    if locked:
        return Action(
            f"unlock {slot}", f"slot {slot}", "its controller steers again", f":lock {slot}", "reversible",
            "held by hand", "steered", message=ControllerDo(verb="unlock", name=slot),
        )  # fmt: skip
    return Action(
        f"lock {slot}", f"slot {slot}", "its knobs stay at their present values, held by you", f":unlock {slot}",
        "reversible", "steered", "held by hand", message=ControllerDo(verb="lock", name=slot),
    )  # fmt: skip


def detach(controller: ControllerStatus) -> Action:
    """Send an attached controller away."""
    steers = controller.standing == "active"
    effect = "its knobs fall back to their former owner" if steers else "it had no power; nothing else changes"
    return Action(
        f"detach {controller.name}", f"slot {controller.slot}", effect, "attach it again", "disruptive",
        controller.standing, "gone", message=ControllerDo(verb="detach", name=controller.name),
    )  # fmt: skip


def stop_run(mode: Literal["drain", "stop", "kill"], run_id: str) -> Action:
    """End the run itself."""
    return Action(
        f"end the run ({mode})", run_id, STOPS[mode], "midflight up --resume", "destructive", "running", "ended",
        run_id, RunStop(mode=mode, why=""),
    )  # fmt: skip


def swap(slot: str, what: str, run: str, overrides: Sequence[str] = ()) -> Action:
    """Replace what runs in a slot, by the command line verb; how it goes is told in the decisions feed."""
    return Action(
        f"swap {slot}", f"slot {slot}",
        "a new process starts in standby, takes over state and knobs, and must live through its probation; "
        "any failure rolls back", f":rollback {slot}", "disruptive", "as it runs", " ".join((what, *overrides)),
        words=("swap", slot, "--with", what, *overrides, "--no-wait", "--run", run),
    )  # fmt: skip


def attach(
    what: str, slot: str, run: str, shadow: bool = True, name: str = "", overrides: Sequence[str] = ()
) -> Action:
    """Start a controller of one's own beside a slot's, by the command line verb."""
    words = ["ctl", "attach", what, *overrides, "--slot", slot, "-d", "--run", run]
    words += ["--shadow"] if shadow else []
    words += ["--name", name] if name else []
    effect = "it decides beside the active one, without power" if shadow else "it takes the slot's knobs"
    return Action(
        f"attach {name or what}", f"slot {slot}", effect, ":detach NAME", "reversible" if shadow else "disruptive",
        "-", f"{what}{' (shadow)' if shadow else ''}", words=tuple(words),
    )  # fmt: skip
