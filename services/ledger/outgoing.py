"""Grants to messages: tickets, score jobs, batches, cut into pieces that fit the wire."""

import hashlib
import json
from collections.abc import Callable, Iterator

from midflight.messages.base import Message
from midflight.messages.samples import Batch, BatchPart, ScoreJob, ScoreJobs, Ticket, Tickets
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BUFFER

from .grants import Grant
from .payload import ENDS, NO_ROOM, STOPPED, head_of, join, prefix_of, segments_of, state_of, tail_of
from .row import Row
from .states import Split

PIECE_ITEMS = 512
PIECE_BYTES = MAX_BUFFER // 2
Out = tuple[Message, list[Column]]
RowOf = Callable[[Row], bytes]
BlobOf = Callable[[int], bytes]


def sample_seed(seed: int, sample: int, turn: int = 0) -> int:
    """The sampling seed of a turn of a sample: the same whenever and wherever it is generated."""
    name = f"{seed}/{sample}/{turn}" if turn else f"{seed}/{sample}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def tickets(
    grant: Grant, rows: list[Row], row_of: RowOf, blob_of: BlobOf, seed: int, eval_temperature: float
) -> Iterator[Out]:
    """Prompts under lease, for a rollout; with an episode that goes on, what there is of it."""
    texts = [row_of(row) for row in rows]
    blobs = [blob_of(row.id) if row.past else b"" for row in rows]
    prefixes = [prefix_of(blob) if blob else b"" for blob in blobs]
    tails = [tail_of(blob) if blob else b"" for blob in blobs]
    items = [
        Ticket(
            id=row.id,
            epoch=epoch,
            seed=sample_seed(seed, row.id, row.turn),
            solo=grant.solo,
            split="eval" if row.split is Split.EVAL else "train",
            temperature=eval_temperature if row.split is Split.EVAL else None,
            row_bytes=len(text),
            turn=row.turn,
            prefix_tokens=len(prefix) // 4,
            tail_bytes=len(tail),
        )
        for row, text, prefix, tail, (_, epoch) in zip(rows, texts, prefixes, tails, grant.leases, strict=True)
    ]
    for start, end in _pieces(_largest(texts, prefixes, tails)):
        columns: list[Column] = [("rows", "|u1", b"".join(texts[start:end]))]
        if any(blobs[start:end]):
            columns.append(("prefix", "<i4", b"".join(prefixes[start:end])))
            columns.append(("tails", "|u1", b"".join(tails[start:end])))
        yield Tickets(tickets=items[start:end], tensors=[]), columns


def score_jobs(grant: Grant, rows: list[Row], row_of: RowOf, blob_of: BlobOf, max_turns: int) -> Iterator[Out]:
    """Conversations under lease, for a reward server; the tools speak first where there may be another turn."""
    texts = [row_of(row) for row in rows]
    blobs = [blob_of(row.id) for row in rows]
    tails = [tail_of(blob) for blob in blobs]
    states = [state_of(blob) for blob in blobs]
    jobs = [
        ScoreJob(
            id=row.id,
            epoch=epoch,
            solo=grant.solo,
            row_bytes=len(text),
            text_bytes=len(tail),
            turn=row.turn,
            interact=row.turn + 1 < max_turns and head_of(blob).end == STOPPED,
            state_bytes=len(state),
        )
        for row, text, blob, tail, state, (_, epoch) in zip(
            rows, texts, blobs, tails, states, grant.leases, strict=True
        )
    ]
    for start, end in _pieces(_largest(texts, tails, states)):
        columns: list[Column] = [
            ("rows", "|u1", b"".join(texts[start:end])),
            ("texts", "|u1", b"".join(tails[start:end])),
        ]
        if any(states[start:end]):
            columns.append(("states", "|u1", b"".join(states[start:end])))
        yield ScoreJobs(jobs=jobs[start:end], tensors=[]), columns


def ended(row: Row, end: int, max_turns: int) -> str:
    """Why an episode is over, by the end of its last turn: after `max_turns` nobody was asked to answer it."""
    if end == STOPPED and 1 < max_turns <= row.turn + 1:
        return "max_turns"
    return ENDS[end] if end < len(ENDS) else ""


def batch(grant: Grant, rows: list[Row], blob_of: BlobOf, max_turns: int) -> Iterator[Out]:
    """A whole batch under lease, for the learner."""
    blobs = [blob_of(row.id) for row in rows]
    parts = [
        BatchPart(
            id=row.id,
            epoch=epoch,
            group=row.group,
            tokens=head_of(blob).tokens,
            version=row.min_version,
            rewards=json.loads(row.rewards),
            segments=segments_of(blob),
            turns=row.turn + (head_of(blob).end != NO_ROOM),
            ended=ended(row, head_of(blob).end, max_turns),
        )
        for row, blob, (_, epoch) in zip(rows, blobs, grant.leases, strict=True)
    ]
    pieces = [*_pieces([part.tokens * 4 for part in parts])]
    assert grant.batch is not None
    for number, (start, end) in enumerate(pieces):
        message = Batch(batch=grant.batch, piece=number, pieces=len(pieces), parts=parts[start:end], tensors=[])
        yield message, join(blobs[start:end])


def _largest(*columns: list[bytes]) -> list[int]:
    """The bytes of each item in the column where it has most, for every column is a buffer of its own."""
    return [max(map(len, parts)) for parts in zip(*columns, strict=True)]


def _pieces(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of item sizes into [start, end) runs within the wire's limits. One item always fits a piece."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and (total + size > PIECE_BYTES or index - start >= PIECE_ITEMS):
            yield start, index
            start, total = index, 0
        total += size
    if len(sizes) > start:
        yield start, len(sizes)
