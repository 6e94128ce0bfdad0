"""Every message kind of protocol 1, by its name on the wire."""

from . import control, events, group, knobs, live, samples, weights
from .base import Message

TOPICS = {
    "control": control.KINDS,
    "knobs": knobs.KINDS,
    "events": events.KINDS,
    "live": live.KINDS,
    "samples": samples.KINDS,
    "weights": weights.KINDS,
    "group": group.KINDS,
}
"""topic -> its kinds, in the order of its file."""

CATALOGUE: dict[str, type[Message]] = {kind.KIND: kind for kinds in TOPICS.values() for kind in kinds}
