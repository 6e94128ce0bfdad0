"""Finished generations to the columns of a `trajectories` message."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from midflight.messages.samples import Trajectories, TrajectoryPart
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BUFFER

from .request import Completion

PIECE_TOKENS = MAX_BUFFER // 4 // 2
PIECE_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class Finished:
    """One completion with what is needed to report it."""

    epoch: int
    prompt: list[int]
    completion: Completion
    text: str
    seconds: float


def pack(finished: list[Finished]) -> Iterator[tuple[Trajectories, list[Column]]]:
    """Messages of at most `PIECE_TOKENS` tokens and `PIECE_SAMPLES` samples each."""
    piece: list[Finished] = []
    tokens = 0
    for one in finished:
        size = len(one.prompt) + len(one.completion.tokens) + len(one.text)
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
        done, prompt = one.completion, len(one.prompt)
        text = one.text.encode()
        ids.extend(one.prompt)
        ids.extend(done.tokens)
        mask += bytes(prompt) + b"\1" * len(done.tokens)
        logprobs.extend([0.0] * prompt)
        logprobs.extend(done.logprobs)
        versions.extend([-1] * prompt)
        versions.extend(done.versions)
        texts += text
        parts.append(
            TrajectoryPart(
                id=done.id,
                epoch=one.epoch,
                tokens=prompt + len(done.tokens),
                text_bytes=len(text),
                stop=done.stop_reason,
                version=min(done.versions),
                seconds=one.seconds,
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
