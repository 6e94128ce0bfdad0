"""What a server says about one generation, as lists of one length; nothing here knows of HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Ending = Literal["stop", "length", "abort"]
ROUNDING = 1e-3
"""By so much, in nats, a log-prob may exceed 0."""


class BadReply(RuntimeError):
    """A reply of another form than SGLang's, or with tokens that cannot be: its server is not trusted."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Sampled tokens, the stop token among them, with their log-probs (nats) and policy versions; all of one length.

    "abort" means that the server was told to end it: the rest is still to be generated.
    """

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    ending: Ending


def parse(reply: Mapping[str, Any], vocabulary: int, room: int) -> Piece:
    """One reply of `/generate` with `return_logprob`, to a request for `room` tokens. Raises BadReply.

    Token ids lie in [0, vocabulary). Only what was aborted may have no tokens: what stops has its stop token, and what
    has no more room had some.
    """
    try:
        meta, tokens = reply["meta_info"], [_whole(one) for one in reply["output_ids"]]
        ending = meta["finish_reason"]["type"]
        scored = meta["output_token_logprobs"] if tokens else []
        logprobs = [_number(one[0]) for one in scored]
        named = [_whole(one[1]) for one in scored]
        spans = list(meta["weight_versions"]) if tokens else []
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise BadReply(f"no reply of /generate: {type(error).__name__} {error} in {str(reply)[:300]}") from error
    if ending not in get_args(Ending):
        raise BadReply(f"finish_reason {str(ending)[:100]!r}")
    if not tokens and ending != "abort":
        raise BadReply(f"no tokens, though finish_reason is {ending!r}")
    if len(tokens) > room:
        raise BadReply(f"{len(tokens)} tokens, where {room} were asked for")
    if outside := [one for one in tokens if not 0 <= one < vocabulary]:
        raise BadReply(f"token {str(outside[0])[:30]} lies outside the vocabulary [0, {vocabulary})")
    if named != tokens:
        raise BadReply(f"log-probs are of {len(named)} other tokens than the {len(tokens)} that were sampled")
    if any(one > ROUNDING for one in logprobs):
        raise BadReply(f"log-prob {max(logprobs):g} is above 0")
    return Piece(tokens, logprobs, spread(spans, len(tokens)), cast(Ending, ending))


def spread(spans: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Spans {version, start, end} over `count` tokens to one version a token. Raises BadReply unless they tile it."""
    versions: list[int] = []
    for span in spans:
        try:
            version, start, end = int(span["version"]), _whole(span["start"]), _whole(span["end"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadReply(f"weights of no version of ours: {str(span)[:300]}") from error
        if version < 0:
            raise BadReply(f"weights of no version of ours: {str(span)[:300]}")
        if start != len(versions) or not start <= end <= count:
            raise BadReply(f"spans of weight versions leave gaps or overlap: {str(spans)[:300]}")
        versions += [version] * (end - start)
    if len(versions) != count:
        raise BadReply(f"weight versions of {len(versions)} tokens for {count}: {str(spans)[:300]}")
    return versions


def _whole(value: object) -> int:
    """JSON's true is 1 to Python, and 7.0 is 7."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{str(value)[:30]!r} is no whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:30]!r} is no number")
    return float(value)
