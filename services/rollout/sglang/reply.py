"""What a server says about one generation, as lists of one length; nothing here knows of HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Ending = Literal["stop", "length", "abort"]


class BadReply(RuntimeError):
    """A reply of another form than SGLang's, or with tokens labelled inconsistently: its server is not trusted."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Sampled tokens, the stop token among them, with their log-probs (nats) and policy versions; all of one length.

    "abort" means that the server was told to end it: the rest is still to be generated.
    """

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    ending: Ending


def parse(reply: Mapping[str, Any]) -> Piece:
    """One reply of `/generate` with `return_logprob`. Raises BadReply."""
    try:
        meta, tokens = reply["meta_info"], list(reply["output_ids"])
        ending = meta["finish_reason"]["type"]
        scored = meta["output_token_logprobs"] if tokens else []
        logprobs = [float(one[0]) for one in scored]
        named = [int(one[1]) for one in scored]
        spans = meta["weight_versions"] if tokens else []
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadReply(f"no reply of /generate: {type(error).__name__} {error} in {str(reply)[:300]}") from error
    if ending not in get_args(Ending):
        raise BadReply(f"finish_reason {ending!r}")
    if named != tokens:
        raise BadReply(f"log-probs are of {len(named)} other tokens than the {len(tokens)} that were sampled")
    return Piece(tokens, logprobs, spread(spans, len(tokens)), cast(Ending, ending))


def spread(spans: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Spans {version, start, end} over `count` tokens to one version a token. Raises BadReply unless they tile it."""
    versions: list[int] = []
    for span in spans:
        try:
            version, start, end = int(span["version"]), int(span["start"]), int(span["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadReply(f"weights of no version of ours: {span}") from error
        if start != len(versions) or end < start:
            raise BadReply(f"spans of weight versions leave gaps or overlap: {list(spans)}")
        versions += [version] * (end - start)
    if len(versions) != count:
        raise BadReply(f"weight versions of {len(versions)} tokens for {count}: {list(spans)}")
    return versions
