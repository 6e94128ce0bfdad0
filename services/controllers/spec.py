"""What every controller can be told, and which knobs it is going to steer: no two may want the same one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from midflight.kernel.spec import ServiceSpec


class ControllerSpec(ServiceSpec):
    """Base of a controller's configuration. Live fields (`kernel.spec.live`) are its parameters: knobs `NAME.field`."""

    entry: ClassVar[str] = ""

    fallback: Literal["hold", "default", "former"] | None = Field(
        None,
        description="When it leaves, its knobs hold their value, return to the default, or go to whoever ruled before. "
        "When omitted: to whoever ruled before or waits, else they hold.",
    )

    @property
    def steers(self) -> tuple[str, ...]:
        """The knobs it holds."""
        raise AssertionError("a controller says what it steers and reads")

    @property
    def reads(self) -> tuple[str, ...]:
        """The metrics of a training step that it decides by."""
        raise AssertionError("a controller says what it steers and reads")

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterable[tuple[str, str]]:
        """Two controllers on one knob, before anything starts; in a live run the kernel lets only one have it."""
        return self.rivals(others)

    def rivals(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """(place, complaint) for each of its knobs that another controller's configuration names too."""
        for slot, other in others.items():
            theirs = other.steers if isinstance(other, ControllerSpec) and other is not self else ()
            for knob in sorted(set(self.steers) & set(theirs)):
                yield "kind", f"{slot} holds {knob} too, and only one can: leave one of them out"
