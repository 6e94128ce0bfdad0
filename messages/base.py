"""What every message is: a strict, frozen pydantic model with a wire name, a purpose and an example.

Strict means: no coercion, no unknown keys, no NaN or infinity, and errors that never repeat the input. The receiving
edge validates; a hot sender may pack a plain mapping of the same shape.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Kind = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z][a-z_.]*$")]
Identity = Annotated[str, Field(min_length=3, max_length=80, pattern=r"^[a-z0-9][a-z0-9_.-]*#[0-9]{1,10}$")]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
KnobName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$")]
Text = Annotated[str, Field(max_length=4000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
SampleId = Annotated[int, Field(ge=0, le=2**62)]
Epoch = Annotated[int, Field(ge=0, le=2**31 - 1)]
Lease = Annotated[list[int], Field(min_length=2, max_length=2)]
Scalar = str | int | float | bool | None
Flat = Annotated[dict[str, Scalar], Field(max_length=512)]


class Part(BaseModel):
    """A typed piece of a message body."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,  # a command line that speaks three kinds does not pay for fifty
    )


class Message(Part):
    """Base of every kind in the catalogue.

    `KIND` is the name on the wire, `EXAMPLE` a filled-in body (tests encode it).
    """

    KIND: ClassVar[str]
    EXAMPLE: ClassVar[dict[str, Any]]


class Tensor(Part):
    """Where one array lies in the raw frames: little-endian, C-contiguous."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    dtype: Annotated[str, Field(max_length=4)]
    shape: Annotated[list[Count], Field(max_length=8)]
    frame: Annotated[int, Field(ge=0, le=15)]
    offset: Count = 0


class Bulk(Message):
    """A message with raw buffer frames behind its body; `tensors` describes them."""

    tensors: Annotated[list[Tensor], Field(max_length=64)]
