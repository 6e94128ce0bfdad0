"""Command mode: one line in the words of the command line -> a change, a screen to show, or leaving.

:set kl.coef=0.01        -> an Action, which goes through the dialog like any other
:metrics                 -> Go("metrics")
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal, cast

from midflight.messages.knobs import KnobDeclaration, KnobStatus
from midflight.messages.live import ControllerStatus

from . import actions
from .actions import Action
from .model import RunModel
from .words import number

SCREENS: Final = ("overview", "metrics", "samples", "controllers", "services", "ledger", "memory")


class CommandError(ValueError):
    """What was typed cannot be done; the text says what can."""


@dataclass(frozen=True, slots=True)
class Go:
    """Show a screen, with something on it chosen or its table filtered."""

    screen: str
    choose: str = ""
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """End this terminal, not the run."""


@dataclass(frozen=True, slots=True)
class Help:
    """Show what can be typed and pressed."""


Outcome = Action | Go | Leave | Help


@dataclass(frozen=True, slots=True)
class Context:
    """What a command may look at."""

    model: RunModel
    run: str
    """Path of the run."""


Parser = Callable[[Sequence[str], Context], Outcome]


def parse(line: str, context: Context) -> Outcome:
    """A typed line -> what it asks for. Raises CommandError."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise CommandError(f"{line!r}: {error}") from None
    if not words:
        raise CommandError("nothing typed; :help lists the commands")
    name = ALIASES.get(words[0], words[0])
    command = COMMANDS.get(name)
    if command is None:
        raise CommandError(f"no command {words[0]!r}{nearest(words[0], COMMANDS)}")
    return command.parse(words[1:], context)


def nearest(word: str, known: "Sequence[str] | dict[str, Command]") -> str:
    """`; did you mean ...?` or what there is."""
    close = get_close_matches(word, list(known), 1)
    listed = ", ".join(list(known)[:12])
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {listed or 'none'}"


def value_of(text: str) -> float | int | bool | str:
    """A value as it would be in a topology file."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def knob_named(name: str, context: Context) -> KnobStatus:
    """The knob. Raises CommandError naming the nearest."""
    knobs = {knob.declaration.name: knob for knob in context.model.knobs.knobs} if context.model.knobs else {}
    if name not in knobs:
        raise CommandError(f"no knob {name!r}{nearest(name, list(knobs))}")
    return knobs[name]


def controller_named(name: str, context: Context) -> ControllerStatus:
    """The controller. Raises CommandError naming the nearest."""
    known = context.model.controllers.controllers if context.model.controllers else []
    found = {controller.name: controller for controller in known}
    if name not in found:
        raise CommandError(f"no controller {name!r}{nearest(name, list(found))}")
    return found[name]


def bounds(spec: KnobDeclaration) -> str:
    """What a knob may be: its choices, or from where to where."""
    if spec.kind == "bool":
        return "true|false"
    return "|".join(spec.choices) or f"{_bound(spec.low)}..{_bound(spec.high)}"


def _bound(value: float | None) -> str:
    """A large whole number as it is: a bound that is rounded is none."""
    return f"{value:.0f}" if value is not None and abs(value) < 1e15 and float(value).is_integer() else number(value)


def checked(knob: KnobStatus, value: float | int | bool | str) -> float | int | bool | str:
    """The value, if the knob's kind and bounds allow it. Raises CommandError."""
    spec, name = knob.declaration, knob.declaration.name
    if spec.kind == "choice":
        if value not in spec.choices:
            raise CommandError(f"{name} is one of {', '.join(spec.choices)}")
        return value
    if spec.kind == "bool" or isinstance(value, bool | str):
        if spec.kind == "bool" and isinstance(value, bool):
            return value
        raise CommandError(f"{name} wants a {spec.kind}, not {value!r}")
    if (spec.low is not None and value < spec.low) or (spec.high is not None and value > spec.high):
        raise CommandError(f"{name} = {value:g} is outside its bounds {spec.low}..{spec.high}")
    return float(value) if spec.kind == "float" else value


def _one(words: Sequence[str], usage: str) -> str:
    if len(words) != 1:
        raise CommandError(f"usage: {usage}")
    return words[0]


def _set(words: Sequence[str], context: Context) -> Outcome:
    name, equals, text = _one(words, ":set NAME=VALUE").partition("=")
    if not equals:
        raise CommandError(f"{name!r}: want NAME=VALUE")
    knob = knob_named(name, context)
    return actions.set_knob(knob, checked(knob, value_of(text)))


def _release(words: Sequence[str], context: Context) -> Outcome:
    return actions.release(knob_named(_one(words, ":release NAME"), context))


def _get(words: Sequence[str], context: Context) -> Outcome:
    return Go("controllers", filter=words[0] if words else "")


def _service(verb: str) -> Parser:
    def make(words: Sequence[str], context: Context) -> Outcome:
        name = _one(words, f":{verb} SERVICE")
        services = context.model.status.services if context.model.status else []
        known = {service.name for service in services} | {service.slot for service in services if service.slot}
        if name not in known:
            raise CommandError(f"no service {name!r}{nearest(name, sorted(known))}")
        state = next((("paused" if s.paused else s.state) for s in services if name in (s.name, s.slot)), "")
        return actions.service_do(cast(Literal["pause", "resume", "drain", "restart", "kill"], verb), name, state)

    return make


def _scale(words: Sequence[str], context: Context) -> Outcome:
    if len(words) != 2 or not words[1].isdigit():
        raise CommandError("usage: :scale SLOT N")
    services = context.model.status.services if context.model.status else []
    return actions.scale(words[0], int(words[1]), services)


def _promote(words: Sequence[str], context: Context) -> Outcome:
    controller = controller_named(_one(words, ":promote CONTROLLER"), context)
    if controller.standing == "active":
        raise CommandError(f"{controller.name} is active already")
    return actions.promote(controller, in_slot(controller.slot, "active", context.model))


def _rollback(words: Sequence[str], context: Context) -> Outcome:
    slot = _one(words, ":rollback SLOT")
    return actions.rollback(
        slot, in_slot(slot, "active", context.model), in_slot(slot, "previous", context.model)
    )  # fmt: skip


def _lock(locked: bool) -> Parser:
    def make(words: Sequence[str], context: Context) -> Outcome:
        slot = _one(words, ":unlock SLOT" if locked else ":lock SLOT")
        told = context.model.controllers
        held = told.locked if told else []
        known = {one.slot for one in (told.controllers if told else ())} | set(held)
        if slot not in known:
            raise CommandError(f"no slot {slot!r} that a controller is in{nearest(slot, sorted(known))}")
        if locked != (slot in held):
            raise CommandError(f"{slot} is {'not locked' if locked else 'locked already'}")
        return actions.lock(slot, locked)

    return make


def _detach(words: Sequence[str], context: Context) -> Outcome:
    controller = controller_named(_one(words, ":detach CONTROLLER"), context)
    if not controller.attached:
        raise CommandError(f"{controller.name} belongs to the topology; :drain {controller.name} ends it")
    return actions.detach(controller)


def _swap(words: Sequence[str], context: Context) -> Outcome:
    if len(words) < 3 or words[1] != "--with" or not all("=" in word for word in words[3:]):
        raise CommandError("usage: :swap SLOT --with FILE|KIND|module:Class [key=value...]")
    return actions.swap(words[0], words[2], context.run, words[3:])


def _attach(words: Sequence[str], context: Context) -> Outcome:
    usage = CommandError("usage: :attach FILE|KIND|module:Class [key=value...] --slot SLOT [--name N] [--steer]")
    rest, options = list(words), {"--slot": "", "--name": ""}
    steer = "--steer" in rest
    rest = [word for word in rest if word != "--steer"]
    for option in options:
        if option in rest:
            at = rest.index(option)
            if at + 1 >= len(rest):
                raise usage
            options[option] = rest[at + 1]
            del rest[at : at + 2]
    if not rest or not options["--slot"] or not all("=" in word for word in rest[1:]):
        raise usage
    slot, name = options["--slot"], options["--name"]
    return actions.attach(rest[0], slot, context.run, not steer, name, rest[1:])


def _stop(words: Sequence[str], context: Context) -> Outcome:
    mode = words[0] if words else "drain"
    if mode not in actions.STOPS:
        raise CommandError(f"usage: :stop {'|'.join(actions.STOPS)}")
    run_id = context.model.status.run_id if context.model.status else ""
    if not run_id:
        raise CommandError("the run has not answered yet")
    return actions.stop_run(cast(Literal["drain", "stop", "kill"], mode), run_id)


def _sample(words: Sequence[str], context: Context) -> Outcome:
    number = _one(words, ":sample ID").removeprefix("#")
    if not number.isdigit():
        raise CommandError("usage: :sample ID")
    return Go("ledger", choose=number)


def in_slot(slot: str, standing: str, model: RunModel) -> str:
    """Name of the controller of a slot that stands so, or nothing."""
    known = model.controllers.controllers if model.controllers else []
    return next((one.name for one in known if one.slot == slot and one.standing == standing), "")


def _screen(name: str) -> Parser:
    def go(words: Sequence[str], context: Context) -> Outcome:
        return Go(name, filter=" ".join(words))

    return go


@dataclass(frozen=True, slots=True)
class Command:
    """What follows its name, what it does."""

    words: str
    text: str
    parse: Parser


COMMANDS: Final[dict[str, Command]] = {
    "set": Command("NAME=VALUE", "change a knob, or a parameter such as kl.target_kl", _set),
    "release": Command("NAME", "give a taken knob back to its controller", _release),
    "get": Command("[PREFIX]", "the knobs", _get),
    "pause": Command("SERVICE", "take no new work, stay", _service("pause")),
    "resume": Command("SERVICE", "take work again", _service("resume")),
    "drain": Command("SERVICE", "finish and leave", _service("drain")),
    "restart": Command("SERVICE", "finish; the next generation starts", _service("restart")),
    "kill": Command("SERVICE", "SIGKILL", _service("kill")),
    "scale": Command("SLOT N", "so many replicas", _scale),
    "promote": Command("CONTROLLER", "give a shadow the power", _promote),
    "rollback": Command("SLOT", "undo the last promotion or swap", _rollback),
    "lock": Command("SLOT", "hold its knobs by hand", _lock(False)),
    "unlock": Command("SLOT", "let its controller steer again", _lock(True)),
    "swap": Command("SLOT --with FILE [key=value...]", "replace what runs in a slot", _swap),
    "attach": Command("FILE --slot SLOT [--name N] [--steer]", "a controller of your own, as a shadow", _attach),
    "detach": Command("CONTROLLER", "send an attached controller away", _detach),
    "stop": Command("[drain|stop|kill]", "end the run", _stop),
    "sample": Command("ID", "a sample's life", _sample),
    **{name: Command("[FILTER]", f"show {name}", _screen(name)) for name in SCREENS},
    "help": Command("", "keys and commands", lambda words, context: Help()),
    "q": Command("", "leave; the run goes on", lambda words, context: Leave()),
}
ALIASES: Final = {"quit": "q", "exit": "q", "ctl": "controllers", "logs": "services", "mem": "memory", "ps": "services"}
