"""docs/knobs.md: every quantity that may change while a run goes on."""

from midflight.messages.knobs import KnobDeclaration
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.knobs import declarations

from .markdown import NOTICE, as_json, code, table

INTRO = """# Knobs

A knob is a quantity that may change while a run goes on. `midflight get` lists those of a live run with value, owner
and version; `midflight set optim.lr=3e-4 --reason plateau` changes one. The service that applies a knob declares it;
the kernel keeps the table (`kernel/knobs.py`) and refuses a value of the wrong type or out of range, from someone who
is not the owner, or under an old epoch. A controller holds a knob as its owner; `--take` takes it away from the
controller. A knob without an owner keeps its last value. Every change is an event with its reason, in the journal.
"""


def knobs() -> dict[str, tuple[KnobDeclaration, ...]]:
    """Service kind -> what it declares, with the default configuration."""
    return {"learner": declarations(LearnerConfig())}


def page() -> str:
    """The whole page."""
    parts = [NOTICE, INTRO]
    for kind, declared in knobs().items():
        rows = [
            [code(k.name), k.kind, k.unit, f"{k.low:g} to {k.high:g}", code(as_json(k.default)), k.description]
            for k in declared
        ]
        parts += [
            f"## Applied by `{kind}`\n",
            "Defaults are those of the configuration keys that set the start value.\n",
        ]
        parts.append(table(["knob", "type", "unit", "range", "default", "meaning"], rows))
    return "\n".join(parts)
