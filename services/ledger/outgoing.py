"""Grants to messages: tickets, score jobs, batches, cut into pieces that fit the wire."""

import hashlib
import json
from collections.abc import Callable, Iterator

from midflight.messages.base import Message
from midflight.messages.samples import Batch, BatchPart, ScoreJob, ScoreJobs, Ticket, Tickets
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BODY, MAX_BUFFER

from .grants import Grant
from .payload import ENDS, NO_ROOM, STOPPED, head_of, join, prefix_of, segments_of, state_of, tail_of
from .row import Row
from .states import Split

PIECE_ITEMS = 512
PIECE_BYTES = MAX_BUFFER // 2
PIECE_BODY = MAX_BODY - (4 << 10)
"""Of a body its items may take this; the rest are its other fields and what describes its columns."""
ITEM_BYTES = 256
"""An item takes less in a body, but for what it holds any number of; a whole number takes at most 9."""
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
    for start, end in pieces(_largest(texts, prefixes, tails), [ITEM_BYTES] * len(items)):
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
    for start, end in pieces(_largest(texts, tails, states), [ITEM_BYTES] * len(jobs)):
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
    cuts = [*pieces([part.tokens * 4 for part in parts], [body_bytes(part) for part in parts])]
    assert grant.batch is not None
    for number, (start, end) in enumerate(cuts):
        message = Batch(batch=grant.batch, piece=number, pieces=len(cuts), parts=parts[start:end], tensors=[])
        yield message, join(blobs[start:end])


def _largest(*columns: list[bytes]) -> list[int]:
    """The bytes of each item in the column where it has most, for every column is a buffer of its own."""
    return [max(map(len, parts)) for parts in zip(*columns, strict=True)]


def body_bytes(part: BatchPart) -> int:
    """At least what a sample takes in a body: a name has up to 3 bytes before it, a reward 9, a segment up to 9."""
    return ITEM_BYTES + sum(len(name.encode()) + 12 for name in part.rewards) + 9 * len(part.segments)


def pieces(sizes: list[int], bodies: list[int]) -> Iterator[tuple[int, int]]:
    """Cut items, by their bytes in the longest column and in the body, into [start, end) runs within the wire's limits.

    One item always fits a piece: what would not is refused when it comes.
    """
    start = total = body = 0
    for index, (size, more) in enumerate(zip(sizes, bodies, strict=True)):
        full = total + size > PIECE_BYTES or body + more > PIECE_BODY or index - start >= PIECE_ITEMS
        if index > start and full:
            yield start, index
            start, total, body = index, 0, 0
        total, body = total + size, body + more
    if len(sizes) > start:
        yield start, len(sizes)
