"""The seam between the lease protocol and what generates: the embedded engine, or servers elsewhere."""

from typing import Protocol

from .request import Completion, Request


class Backend(Protocol):
    """Takes requests, and gives each of them back once: completed by `step`, or in a way of its own."""

    @property
    def version(self) -> int:
        """Version of the weights with which, or with newer ones, a request added now is generated; -1: of none yet."""

    @property
    def active(self) -> int:
        """Requests held."""

    @property
    def free_slots(self) -> int:
        """How many more requests `add` will take now."""

    @property
    def kv_use(self) -> float:
        """Share of the cache's places that hold a token; 0 where that is not known."""

    def add(self, request: Request) -> None:
        """Begin it. Raises RefusedRequest when it cannot be generated here."""

    def step(self) -> list[Completion]:
        """Go on by one piece of work, if there is any, and return what has ended."""
