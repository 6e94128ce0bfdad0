"""The envelope: who says what kind of thing to whom, and which message caused it."""

from typing import Annotated

from pydantic import Field

from .base import Count, Flat, Identity, Kind, Part

MAJOR = 1
"""A peer with another major is answered `reject`; the layout of the frames may differ."""
MINOR = 0
"""A higher minor may add optional body fields, which an older peer drops."""


class Envelope(Part):
    """First frame, after the major byte. Short keys: it travels with every message."""

    v: Annotated[int, Field(ge=0, le=255, description="protocol minor of the sender")]
    k: Annotated[Kind, Field(description="kind, the key of the catalogue")]
    i: Annotated[Count, Field(description="number of this message at its sender; with s it is the message id")]
    s: Annotated[Identity, Field(description="sender, name#generation")]
    c: Annotated[str | None, Field(max_length=100, description="id s:i of the request this answers")] = None
    t: Annotated[str | None, Field(max_length=64, description="trace id, carried along a chain of causes")] = None
    p: Annotated[str | None, Field(max_length=100, description="id s:i of the message that caused this")] = None
    ts: Annotated[Count, Field(description="wall clock of sending, ns, for people only")] = 0
    n: Annotated[int, Field(ge=0, le=16, description="number of raw frames behind the body")] = 0
    x: Annotated[Flat | None, Field(description="extensions; the only place for unknown keys")] = None

    @property
    def id(self) -> str:
        """The message id, `source:number`."""
        return f"{self.s}:{self.i}"
