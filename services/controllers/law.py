"""What a control law is: a pure state machine over floats, without sockets, configuration or a clock."""

from collections.abc import Mapping
from typing import Protocol


class Law(Protocol):
    """A control law."""

    def state_dict(self) -> dict[str, object]:
        """Everything it goes on from, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from there. Raises ValueError, changing nothing."""
        ...


class Stateless:
    """The law of a controller that decides by the last step alone."""

    def state_dict(self) -> dict[str, object]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing to go on from."""
