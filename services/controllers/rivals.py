"""Which knobs the controllers of a topology are going to hold: no two may want the same one."""

from collections.abc import Iterator, Mapping, Sequence

from midflight.kernel.spec import ServiceSpec
from midflight.messages.knobs import REWARD_KNOB


def held_by_others(
    own: ServiceSpec, knobs: Sequence[str], others: Mapping[str, ServiceSpec]
) -> Iterator[tuple[str, str]]:
    """(place, complaint) for each of our knobs that another controller's configuration names too."""
    for slot, other in others.items():
        for knob in sorted(set(knobs) & set(_wanted(other))) if other is not own else ():
            yield "kind", f"{slot} holds {knob} too, and only one can: leave one of them out"


def _wanted(spec: ServiceSpec) -> list[str]:
    match spec.part:
        case "kl":
            return [str(getattr(spec, "knob", ""))]
        case "clip":
            return ["clip.range"]
        case "constraints":
            return [limit.knob for limit in getattr(spec, "limits", {}).values()]
        case "objectives":
            return [REWARD_KNOB + name for name in getattr(spec, "objective_weights", {})]
    return []
