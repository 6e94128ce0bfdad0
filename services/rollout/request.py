"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

StopReason: TypeAlias = Literal["stop", "length", "cancelled"]


class RefusedRequest(ValueError):
    """The engine cannot take this request; the message names the request, the limit and what to change."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response to generate.

    `id` is unique among the requests held by the engine. `temperature` 0 is greedy decoding. The tokens depend on
    `seed` and the weights, not on what else is in the batch. `stop_ids` end the response besides the engine's own, and
    so do the texts of `stop`, as soon as the response contains one; it is kept.
    """

    id: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished response, all lists of one length.

    `tokens` include the stop token. `logprobs` (nats, fp32) are of the distribution that was sampled, after the
    temperature; greedy tokens carry the log-prob at temperature 1. `versions` are those of the weights that chose
    each token. `stop_reason` is "stop" after a stop id or text, "length" at the limit, "cancelled" when cut short.
    """

    id: int
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    stop_reason: StopReason
