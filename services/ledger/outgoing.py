"""Grants to messages: tickets, score jobs, batches, cut into pieces that fit the wire."""

import hashlib
import json
from collections.abc import Callable, Iterator

from midflight.messages.base import Message
from midflight.messages.samples import Batch, BatchPart, ScoreJob, ScoreJobs, Ticket, Tickets
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BUFFER

from .grants import Grant
from .payload import join, text_of, tokens_of
from .row import Row
from .states import Split

PIECE_ITEMS = 512
PIECE_BYTES = MAX_BUFFER // 2
Out = tuple[Message, list[Column]]
RowOf = Callable[[Row], bytes]
BlobOf = Callable[[int], bytes]


def sample_seed(seed: int, sample: int) -> int:
    """The sampling seed of a sample: the same whenever and wherever it is generated."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=7).digest(), "big")


def tickets(grant: Grant, rows: list[Row], row_of: RowOf, seed: int, eval_temperature: float) -> Iterator[Out]:
    """Prompts under lease, for a rollout."""
    texts = [row_of(row) for row in rows]
    items = [
        Ticket(
            id=row.id,
            epoch=epoch,
            seed=sample_seed(seed, row.id),
            solo=grant.solo,
            split="eval" if row.split is Split.EVAL else "train",
            temperature=eval_temperature if row.split is Split.EVAL else None,
            row_bytes=len(text),
        )
        for row, text, (_, epoch) in zip(rows, texts, grant.leases, strict=True)
    ]
    for start, end in _pieces([len(text) for text in texts]):
        yield Tickets(tickets=items[start:end], tensors=[]), [("rows", "|u1", b"".join(texts[start:end]))]


def score_jobs(grant: Grant, rows: list[Row], row_of: RowOf, blob_of: BlobOf) -> Iterator[Out]:
    """Prompts and completions under lease, for a reward server."""
    texts = [row_of(row) for row in rows]
    answers = [text_of(blob_of(row.id)) for row in rows]
    jobs = [
        ScoreJob(id=row.id, epoch=epoch, solo=grant.solo, row_bytes=len(text), text_bytes=len(answer))
        for row, text, answer, (_, epoch) in zip(rows, texts, answers, grant.leases, strict=True)
    ]
    for start, end in _pieces([max(len(a), len(b)) for a, b in zip(texts, answers, strict=True)]):
        columns: list[Column] = [
            ("rows", "|u1", b"".join(texts[start:end])),
            ("texts", "|u1", b"".join(answers[start:end])),
        ]
        yield ScoreJobs(jobs=jobs[start:end], tensors=[]), columns


def batch(grant: Grant, rows: list[Row], blob_of: BlobOf) -> Iterator[Out]:
    """A whole batch under lease, for the learner."""
    blobs = [blob_of(row.id) for row in rows]
    parts = [
        BatchPart(
            id=row.id,
            epoch=epoch,
            group=row.group,
            tokens=tokens_of(blob),
            version=row.min_version,
            rewards=json.loads(row.rewards),
        )
        for row, blob, (_, epoch) in zip(rows, blobs, grant.leases, strict=True)
    ]
    pieces = [*_pieces([part.tokens * 4 for part in parts])]
    assert grant.batch is not None
    for number, (start, end) in enumerate(pieces):
        message = Batch(batch=grant.batch, piece=number, pieces=len(pieces), parts=parts[start:end], tensors=[])
        yield message, join(blobs[start:end])


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
