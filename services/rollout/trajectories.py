"""Finished generations to the columns of a `trajectories` message."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from midflight.messages.samples import Ticket, Trajectories, TrajectoryPart
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BUFFER

from .request import Completion

PIECE_TOKENS = MAX_BUFFER // 4 // 2
PIECE_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, of which the ledger has the first `known` tokens already.

    anew: an episode goes on with a conversation that the template has rewritten; it is a segment of its own.
    """

    ids: list[int]
    known: int = 0
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """One generation with what is needed to report it; without tokens where there was no room for any."""

    ticket: Ticket
    prompt: Prompt
    completion: Completion
    stop: str
    text: str
    seconds: float


def pack(finished: list[Finished]) -> Iterator[tuple[Trajectories, list[Column]]]:
    """Messages of at most `PIECE_TOKENS` tokens and `PIECE_SAMPLES` samples each."""
    piece: list[Finished] = []
    tokens = 0
    for one in finished:
        size = len(one.prompt.ids) - one.prompt.known + len(one.completion.tokens) + len(one.text)
        if piece and (tokens + size > PIECE_TOKENS or len(piece) >= PIECE_SAMPLES):
            yield _message(piece)
            piece, tokens = [], 0
        piece.append(one)
        tokens += size
    if piece:
        yield _message(piece)


def _message(piece: list[Finished]) -> tuple[Trajectories, list[Column]]:
    ids, mask, logprobs, versions = array("i"), bytearray(), array("f"), array("i")
    texts, parts = bytearray(), []
    for one in piece:
        done, read = one.completion, one.prompt.ids[one.prompt.known :]
        said = {"role": "assistant", "content": one.text}
        text = json.dumps(said, ensure_ascii=False).encode() if done.tokens else b""
        ids.extend(read)
        ids.extend(done.tokens)
        mask += bytes(len(read)) + b"\1" * len(done.tokens)
        logprobs.extend([0.0] * len(read))
        logprobs.extend(done.logprobs)
        versions.extend([-1] * len(read))
        versions.extend(done.versions)
        texts += text
        parts.append(
            TrajectoryPart(
                id=done.id,
                epoch=one.ticket.epoch,
                tokens=len(read) + len(done.tokens),
                text_bytes=len(text),
                stop=one.stop,
                version=min(done.versions, default=-1),
                seconds=one.seconds,
                turn=one.ticket.turn,
                segment=one.prompt.anew,
            )
        )
    columns: list[Column] = [
        ("tokens", "<i4", ids.tobytes()),
        ("mask", "|u1", bytes(mask)),
        ("logprobs", "<f4", logprobs.tobytes()),
        ("versions", "<i4", versions.tobytes()),
        ("texts", "|u1", bytes(texts)),
    ]
    return Trajectories(parts=parts, tensors=[]), columns
