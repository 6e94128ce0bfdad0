"""What `tab` makes of a command typed so far: its name, then what it may be about."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final

from .actions import STOPS
from .commands import ALIASES, COMMANDS
from .logbook import LEVELS
from .model import RunModel

OPTIONS: Final = {"swap": ("--with ",), "attach": ("--slot ", "--name ", "--steer ")}


def completions(line: str, model: RunModel) -> list[str]:
    """Every line that this one may become with its last word whole."""
    head, space, word = line.rpartition(" ")
    begun = head.split()
    words = _after(begun, model) if begun else [f"{name} " for name in COMMANDS]
    return [f"{head}{space}{known}" for known in words if known.startswith(word)]


def levels(text: str) -> list[str]:
    """The levels of a log that begin so."""
    return [name for name in LEVELS if name.startswith(text.lower())]


def common(lines: Sequence[str]) -> str:
    """How all of them begin."""
    least, most = min(lines, default=""), max(lines, default="")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(least, most, strict=False))
    return "".join(character for character, _ in same)


def _after(begun: list[str], model: RunModel) -> list[str]:
    name = ALIASES.get(begun[0], begun[0])
    if begun[-1] == "--slot":
        return _slots(model)
    if len(begun) == 1 and name in ARGUMENTS:
        return ARGUMENTS[name](model)
    return [option for option in OPTIONS.get(name, ()) if option.strip() not in begun]


def _knobs(model: RunModel) -> list[str]:
    return sorted(knob.declaration.name for knob in (model.knobs.knobs if model.knobs else ()))


def _services(model: RunModel) -> list[str]:
    services = model.status.services if model.status else []
    return sorted({one.name for one in services} | {one.slot for one in services if one.slot})


def _scaled(model: RunModel) -> list[str]:
    services = model.status.services if model.status else []
    return sorted({f"{one.slot or one.name} " for one in services})


def _slots(model: RunModel) -> list[str]:
    return sorted({one.slot for one in (model.controllers.controllers if model.controllers else ())})


def _locked(model: RunModel) -> list[str]:
    return sorted(model.controllers.locked if model.controllers else ())


def _powerless(model: RunModel) -> list[str]:
    known = model.controllers.controllers if model.controllers else []
    return sorted(one.name for one in known if one.standing != "active")


def _attached(model: RunModel) -> list[str]:
    return sorted(one.name for one in (model.controllers.controllers if model.controllers else ()) if one.attached)


ARGUMENTS: Final[dict[str, Callable[[RunModel], list[str]]]] = {
    "set": lambda model: [f"{name}=" for name in _knobs(model)],
    "get": _knobs,
    "release": _knobs,
    **dict.fromkeys(("pause", "resume", "drain", "restart", "kill"), _services),
    "scale": _scaled,
    "promote": _powerless,
    "detach": _attached,
    "rollback": _slots,
    "lock": _slots,
    "unlock": _locked,
    "swap": _scaled,
    "stop": lambda model: list(STOPS),
}
